"""Find, validate and describe driver plugins; the only room that imports pluggy."""
