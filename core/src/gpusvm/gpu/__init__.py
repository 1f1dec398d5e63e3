"""The parts a modelled GPU is assembled from: page table and TLB, fault buffer, copy engine, link."""
