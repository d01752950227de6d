"""What we do: effects on the world and reads of it."""
