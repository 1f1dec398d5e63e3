"""The driver svmdev: a device without hardware on drm_gpusvm and drm_pagemap, and the smallest driver that has all.

`gpusvm_svmdev.device.Svmdev` is a device, `vm_create` opens it in a process, and `commands` of the open file are its
commands.
"""
