"""include/uapi/drm/nouveau_drm.h, as of Linux 7.3.4: what a program asks of SVM_BIND, of which one request is known."""

import errno
from typing import Final

from attrs import frozen
from gpusvm.errors import KernelError

__all__ = ["NOUVEAU_SVM_BIND_COMMAND__MIGRATE", "NOUVEAU_SVM_BIND_TARGET__GPU_VRAM", "SvmBind"]

NOUVEAU_SVM_BIND_COMMAND__MIGRATE: Final = 0
NOUVEAU_SVM_BIND_TARGET__GPU_VRAM: Final = 1 << 31

_COMMAND_BITS: Final = 8
_TARGET_SHIFT: Final = 16
_TARGET_BITS: Final = 32
_VALID_BITS: Final = 48


@frozen(kw_only=True)
class SvmBind:
    """Be the argument of DRM_IOCTL_NOUVEAU_SVM_BIND (struct drm_nouveau_svm_bind); addresses in bytes.

    `header` has a command in bits 0 to 7, a priority in 8 to 15 that nobody reads, and a target in 16 to 47.
    """

    va_start: int
    va_end: int
    header: int = NOUVEAU_SVM_BIND_COMMAND__MIGRATE | NOUVEAU_SVM_BIND_TARGET__GPU_VRAM << _TARGET_SHIFT
    stride: int = 0
    reserved0: int = 0
    reserved1: int = 0

    def check(self, start: int, end: int) -> None:
        """Refuse with EINVAL what is not to migrate whole pages of [start, end) to VRAM (nouveau_svmm_bind)."""
        if self.reserved0 or self.reserved1:
            raise KernelError(errno.EINVAL, "SVM_BIND: a reserved field is not 0")
        if self.header >> _VALID_BITS:
            raise KernelError(errno.EINVAL, f"SVM_BIND: header {self.header:#x} has bits behind its last field")
        if start >= end:
            raise KernelError(errno.EINVAL, f"SVM_BIND: {start:#x}-{end:#x} has no pages")
        command = self.header & (1 << _COMMAND_BITS) - 1
        if command != NOUVEAU_SVM_BIND_COMMAND__MIGRATE:
            raise KernelError(errno.EINVAL, f"SVM_BIND: command {command} is not to migrate")
        target = self.header >> _TARGET_SHIFT & (1 << _TARGET_BITS) - 1
        if target != NOUVEAU_SVM_BIND_TARGET__GPU_VRAM:
            raise KernelError(errno.EINVAL, f"SVM_BIND: target {target:#x} is not the VRAM")
        if self.stride:
            raise KernelError(errno.EINVAL, f"SVM_BIND: a stride of {self.stride} is not supported")
