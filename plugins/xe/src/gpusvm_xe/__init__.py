"""The driver xe: migrate on a GPU fault, one buffer object per range, the pagemap beside its dev_pagemap."""
