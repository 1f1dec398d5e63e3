"""The driver dmirror: the kernel's own HMM test device, a backing system page behind each device page."""
