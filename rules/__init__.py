"""What is true: frozen data and pure decisions. Imports only the standard library and pydantic."""
