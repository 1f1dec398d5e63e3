"""The driver nouveau: map in place on a GPU fault, migrate on request, the pagemap inside a pinned chunk."""
