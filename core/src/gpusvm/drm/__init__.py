"""What drivers share above the mm: GpuSvm, DrmPagemap, device memory, runtime PM, DMA mapping, buffer objects."""
