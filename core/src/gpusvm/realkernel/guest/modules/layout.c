// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Never loaded: it holds, as numbers in a section of their own, where a probe finds what it reports, in the order start,
 * end, event and owner of a notifier's range; the device of a mirror, counted from the mirror's notifier; the size of a
 * device.
 */
#include "test_hmm.c"

static const long layout[] __used __section(".gpusvm_layout") = {
	offsetof(struct mmu_notifier_range, start),
	offsetof(struct mmu_notifier_range, end),
	offsetof(struct mmu_notifier_range, event),
	offsetof(struct mmu_notifier_range, owner),
	(long)offsetof(struct dmirror, mdevice) - (long)offsetof(struct dmirror, notifier),
	sizeof(struct dmirror_device),
};
