/* SPDX-License-Identifier: MIT OR GPL-2.0 */
#ifndef SVMDEV_H
#define SVMDEV_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/memremap.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <drm/drm_gpusvm.h>
#include <drm/drm_pagemap.h>

#include "svmdev_uapi.h"

#define SVMDEV_DEVICES 2

struct drm_device;
struct faux_device;

enum svmdev_failure {
	SVMDEV_FAIL_ALLOC,
	SVMDEV_FAIL_POPULATE,
	SVMDEV_FAIL_COPY_TO_DEVMEM,
	SVMDEV_FAIL_COPY_TO_RAM,
	SVMDEV_FAILURES,
};

/* A device, with memory: RAM that stands behind device-private pages, page by page. */
struct svmdev {
	unsigned int number;
	struct faux_device *faux;
	struct drm_device *drm;
	struct miscdevice misc;

	struct dev_pagemap pagemap;
	struct drm_pagemap dpagemap;
	void *owner;
	u8 *bytes;
	unsigned long npages;

	spinlock_t lock;	/* what follows; taken where a folio is freed */
	unsigned long *used;
	struct list_head allocations;	/* the oldest first */
	unsigned long allocated, released, in_use;
	unsigned long mapped, unmapped;
	unsigned long calls_until_failure[SVMDEV_FAILURES];	/* 0: none fails */
};

/* Pages of a device that were allocated together. */
struct svmdev_allocation {
	struct drm_pagemap_devmem devmem;
	struct svmdev *device;
	struct kref ref;
	struct list_head link;
	unsigned long first, npages;
};

/* An open file: the mirror of the address space of whoever opened it. */
struct svmdev_mirror {
	struct drm_gpusvm gpusvm;
	struct svmdev *device;
	struct mutex lock;		/* the driver's lock, outermost */
	spinlock_t events_lock;		/* the events, and the list of garbage */
	struct list_head garbage;
	struct list_head ranges;
	unsigned long allocated_before, released_before;
	char *events;
	size_t events_length;
};

struct svmdev_range {
	struct drm_gpusvm_range base;
	struct drm_gpusvm_pages pages;
	struct list_head garbage;
	struct list_head link;
};

extern struct svmdev svmdev_devices[SVMDEV_DEVICES];
extern unsigned long svmdev_base;	/* pages are counted from here */

/* memory.c */
int svmdev_memory_init(struct svmdev *device, void *owner, unsigned long npages, bool move_within);
struct svmdev_allocation *svmdev_allocation_of(struct svmdev *device, unsigned long page);
struct svmdev_allocation *svmdev_nth_allocation(struct svmdev *device, unsigned long n);
int svmdev_evict(struct svmdev_allocation *allocation);	/* takes the reference; NULL: -ENOENT */
struct svmdev *svmdev_of_page(struct page *page);
unsigned long svmdev_page_number(struct svmdev *device, struct page *page);
u8 *svmdev_bytes(const struct drm_pagemap_addr *mapped);
bool svmdev_is_own(const struct drm_pagemap_addr *mapped, unsigned int *device, unsigned long *page);

/* mirror.c */
struct svmdev_mirror *svmdev_mirror_open(struct svmdev *device, unsigned long notifier_size);
void svmdev_mirror_close(struct svmdev_mirror *mirror);
void svmdev_do(struct svmdev_mirror *mirror, unsigned int request, struct svmdev_command *command, char *text);

#endif
