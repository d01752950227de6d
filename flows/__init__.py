"""In which order: the parent flow, one update flow per component, rollback, recovery."""
