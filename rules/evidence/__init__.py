"""Evidence in standard formats: pure parsers, and what their contents mean for the checklist."""
