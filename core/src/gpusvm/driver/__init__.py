"""What a driver plugin implements: what it declares, the protocols of its objects, and the shared fault pipeline."""

from gpusvm.driver.adapter import PopulateOnly
from gpusvm.driver.capabilities import Capabilities, Capability, no, yes
from gpusvm.driver.chunk import Chunk, ChunkPool, FreeList, chunk_pages
from gpusvm.driver.contract import ABI, DeviceSpec, DriverInfo, Host
from gpusvm.driver.embedding import DevInDrm, DrmEmbedding, P2pProvider, Siblings, drm_embedding, embedding_problems
from gpusvm.driver.fault import (
    ACCESS_ATOMIC,
    ACCESS_NAMES,
    ACCESS_PREFETCH,
    ACCESS_READ,
    ACCESS_WRITE,
    STAGES,
    FaultAccounts,
    GpuFault,
)
from gpusvm.driver.mirror import NoDeviceMemory, RangeFaults, RangeVm
from gpusvm.driver.nofail import RETRY_NS, alloc_folio_nofail, alloc_pages_nofail
from gpusvm.driver.pipeline import FaultJob, FaultPipeline, Restart
from gpusvm.driver.power import AlwaysAwake, ChangedPm
from gpusvm.driver.protocols import (
    BoMapping,
    Driver,
    FaultPolicy,
    FaultSource,
    PagemapEmbedding,
    RuntimePmPolicy,
    TiledVm,
    Vm,
)
from gpusvm.driver.refusals import NEVER, Errnos, Refusals
from gpusvm.driver.source import CallerFaults, CallerPipeline, FaultQueues, QueueFaults
from gpusvm.driver.spec import DriverSpec, format_size, parse_size, read_spec, split_spec
from gpusvm.driver.system_sleep import system_sleep
from gpusvm.driver.tunables import Variant, all_fixed, quirk, tunable
from gpusvm.driver.unit import FaultUnit, NotifierWindow, RangeUnit

__all__ = [
    "ABI",
    "ACCESS_ATOMIC",
    "ACCESS_NAMES",
    "ACCESS_PREFETCH",
    "ACCESS_READ",
    "ACCESS_WRITE",
    "NEVER",
    "RETRY_NS",
    "STAGES",
    "AlwaysAwake",
    "BoMapping",
    "CallerFaults",
    "CallerPipeline",
    "Capabilities",
    "Capability",
    "ChangedPm",
    "Chunk",
    "ChunkPool",
    "DevInDrm",
    "DeviceSpec",
    "Driver",
    "DriverInfo",
    "DriverSpec",
    "DrmEmbedding",
    "Errnos",
    "FaultAccounts",
    "FaultJob",
    "FaultPipeline",
    "FaultPolicy",
    "FaultQueues",
    "FaultSource",
    "FaultUnit",
    "FreeList",
    "GpuFault",
    "Host",
    "NoDeviceMemory",
    "NotifierWindow",
    "P2pProvider",
    "PagemapEmbedding",
    "PopulateOnly",
    "QueueFaults",
    "RangeFaults",
    "RangeUnit",
    "RangeVm",
    "Refusals",
    "Restart",
    "RuntimePmPolicy",
    "Siblings",
    "TiledVm",
    "Variant",
    "Vm",
    "all_fixed",
    "alloc_folio_nofail",
    "alloc_pages_nofail",
    "chunk_pages",
    "drm_embedding",
    "embedding_problems",
    "format_size",
    "no",
    "parse_size",
    "quirk",
    "read_spec",
    "split_spec",
    "system_sleep",
    "tunable",
    "yes",
]
