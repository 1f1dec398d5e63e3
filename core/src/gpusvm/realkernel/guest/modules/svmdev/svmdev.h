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
struct drm_pagemap_cache;
struct faux_device;

enum svmdev_failure {
	SVMDEV_FAIL_ALLOC,
	SVMDEV_FAIL_POPULATE,
	SVMDEV_FAIL_COPY_TO_DEVMEM,
	SVMDEV_FAIL_COPY_TO_RAM,
	SVMDEV_FAILURES,
};

/* Events as text: a file's own, or those of all files in their order. */
struct svmdev_log {
	spinlock_t lock;
	char *text;
	size_t length;
};

/* What the device's memory is for others, as long as somebody uses it; then it may be made again. */
struct svmdev_pagemap {
	struct drm_pagemap base;
	struct svmdev *device;
	unsigned long serial;
	struct list_head link;
};

/* A device, with memory: RAM that stands behind device-private pages, page by page, or that coherent pages are. */
struct svmdev {
	unsigned int number;
	struct faux_device *faux;
	struct drm_device *drm;
	struct miscdevice misc;
	struct mutex files_lock;
	unsigned int files;
	bool unplugged;			/* as long as a file is open: then it is plugged in again */

	struct dev_pagemap pagemap;
	struct svmdev_pagemap *plain;	/* without a cache: its only one */
	struct drm_pagemap_cache *cache;
	struct list_head destroyed;	/* their memory is kept until the device is plugged in again */
	unsigned long serials;
	unsigned long timeslice_ms;
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
	spinlock_t garbage_lock;
	struct list_head garbage;
	struct list_head ranges;
	unsigned long allocated_before, released_before;
	long mapped_before;
	struct drm_pagemap *held;	/* what it keeps of its device's memory, if it was told to */
	struct svmdev_log events;
};

struct svmdev_range {
	struct drm_gpusvm_range base;
	struct drm_gpusvm_pages pages;
	struct list_head garbage;
	struct list_head link;
};

extern struct svmdev svmdev_devices[SVMDEV_DEVICES];
extern unsigned long svmdev_base;	/* pages are counted from here */
extern bool svmdev_coherent;
extern unsigned long svmdev_coherent_at;
extern bool svmdev_one_log, svmdev_cached, svmdev_make_room, svmdev_migrate_within;
extern struct svmdev_log svmdev_all;

/* main.c */
__printf(2, 3) void svmdev_note(struct svmdev_log *log, const char *format, ...);
int svmdev_plug(struct svmdev *device);
void svmdev_unplug(struct svmdev *device, struct svmdev_command *command);

/* memory.c */
int svmdev_memory_init(struct svmdev *device, void *owner, unsigned long npages);
int svmdev_pagemap_init(struct svmdev *device);
void svmdev_pagemap_fini(struct svmdev *device);
/* with a reference; how it was found goes to *how */
struct drm_pagemap *svmdev_pagemap_get(struct svmdev *device, const char **how);
unsigned long svmdev_serial(struct drm_pagemap *dpagemap);
int svmdev_populate(struct svmdev *device, unsigned long start, unsigned long end, struct mm_struct *mm);
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
