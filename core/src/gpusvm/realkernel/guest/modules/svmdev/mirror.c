// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * A mirror of one address space on drm_gpusvm: faults, invalidations, garbage, and what a device reads and writes through
 * what is mapped.  Whatever happens is written down, for those who ask.
 */
#include <linux/hmm.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <drm/drm_drv.h>

#include "svmdev.h"

#define TRIES 3		/* of a fault that may be tried again */

static const unsigned long chunk_sizes[] = { SZ_2M, SZ_64K, SZ_4K };

static struct svmdev_mirror *of_gpusvm(struct drm_gpusvm *gpusvm)
{
	return container_of(gpusvm, struct svmdev_mirror, gpusvm);
}

static struct svmdev_range *of_base(struct drm_gpusvm_range *base)
{
	return container_of(base, struct svmdev_range, base);
}

static unsigned long pages_in(struct svmdev_range *range)
{
	return drm_gpusvm_range_size(&range->base) >> PAGE_SHIFT;
}

/* Addresses are written as page numbers. */
static unsigned long page_of(unsigned long addr)
{
	return (addr - svmdev_base) >> PAGE_SHIFT;
}

/* Where what happens to a mirror is written down. */
static struct svmdev_log *log_of(struct svmdev_mirror *mirror)
{
	return svmdev_one_log ? &svmdev_all : &mirror->events;
}

#define note(mirror, ...) svmdev_note(log_of(mirror), __VA_ARGS__)

static __printf(2, 3) void say(char *text, const char *format, ...)
{
	size_t length = strlen(text);
	va_list arguments;

	va_start(arguments, format);
	vscnprintf(text + length, SVMDEV_TEXT - length, format, arguments);
	va_end(arguments);
}

/* ---- ops of drm_gpusvm */

static struct drm_gpusvm_range *range_alloc(struct drm_gpusvm *gpusvm)
{
	struct svmdev_mirror *mirror = of_gpusvm(gpusvm);
	struct svmdev_range *range = kzalloc(sizeof(*range), GFP_KERNEL);

	if (!range)
		return NULL;
	drm_gpusvm_init_pages(&range->pages, mirror->device->drm);
	INIT_LIST_HEAD(&range->garbage);
	list_add_tail(&range->link, &mirror->ranges);
	return &range->base;
}

static void range_free(struct drm_gpusvm_range *base)
{
	struct svmdev_range *range = of_base(base);

	drm_gpusvm_free_pages(base->gpusvm, &range->pages, pages_in(range));
	list_del(&range->link);
	kfree(range);
}

static void throw_away(struct svmdev_mirror *mirror, struct svmdev_range *range)
{
	unsigned long flags;

	spin_lock_irqsave(&mirror->garbage_lock, flags);
	if (list_empty(&range->garbage))
		list_add_tail(&range->garbage, &mirror->garbage);
	spin_unlock_irqrestore(&mirror->garbage_lock, flags);
}

static void invalidate(struct drm_gpusvm *gpusvm, struct drm_gpusvm_notifier *notifier,
		       const struct mmu_notifier_range *change)
{
	struct svmdev_mirror *mirror = of_gpusvm(gpusvm);
	unsigned long start = max(drm_gpusvm_notifier_start(notifier), change->start);
	unsigned long end = min(drm_gpusvm_notifier_end(notifier), change->end);
	struct drm_gpusvm_ctx ctx = { .in_notifier = true };
	struct drm_gpusvm_range *base = NULL;
	const char *owner = "-";

	if (change->owner)
		owner = change->owner == mirror->device->owner ? "own" : "other";
	note(mirror, " inv(%u,%lx,%lx,%d,%s", mirror->device->number, page_of(start), page_of(end), change->event, owner);
	drm_gpusvm_for_each_range(base, notifier, start, end) {
		struct svmdev_range *range = of_base(base);

		note(mirror, ";%lx-%lx%s", page_of(drm_gpusvm_range_start(base)), page_of(drm_gpusvm_range_end(base)),
		     range->pages.flags.has_dma_mapping ? "m" : "");
		drm_gpusvm_unmap_pages(gpusvm, &range->pages, pages_in(range), &ctx);
		if (change->event == MMU_NOTIFY_UNMAP) {
			drm_gpusvm_range_set_unmapped(base, &range->pages, 1, change);
			throw_away(mirror, range);
		}
	}
	note(mirror, ")");
}

static const struct drm_gpusvm_ops gpusvm_ops = {
	.range_alloc = range_alloc,
	.range_free = range_free,
	.invalidate = invalidate,
};

/* ---- ranges */

static struct svmdev_range *range_at(struct svmdev_mirror *mirror, unsigned long addr)
{
	struct drm_gpusvm_notifier *notifier = drm_gpusvm_notifier_find(&mirror->gpusvm, addr, addr + 1);
	struct drm_gpusvm_range *base = notifier ? drm_gpusvm_range_find(notifier, addr, addr + 1) : NULL;

	return base ? of_base(base) : NULL;
}

static void drop(struct svmdev_mirror *mirror, struct svmdev_range *range)
{
	struct drm_gpusvm_ctx ctx = { };

	/* Until it is off its notifier a munmap may leave it to the collector once more. */
	drm_gpusvm_range_get(&range->base);
	drm_gpusvm_unmap_pages(&mirror->gpusvm, &range->pages, pages_in(range), &ctx);
	drm_gpusvm_range_remove(&mirror->gpusvm, &range->base);
	spin_lock_irq(&mirror->garbage_lock);
	list_del_init(&range->garbage);
	spin_unlock_irq(&mirror->garbage_lock);
	drm_gpusvm_range_put(&range->base);
}

static struct svmdev_range *first_garbage(struct svmdev_mirror *mirror)
{
	struct svmdev_range *range;

	spin_lock_irq(&mirror->garbage_lock);
	range = list_first_entry_or_null(&mirror->garbage, struct svmdev_range, garbage);
	spin_unlock_irq(&mirror->garbage_lock);
	return range;
}

/* What is left of a range that was unmapped in part goes home first. */
static void collect(struct svmdev_mirror *mirror)
{
	struct svmdev_range *range;

	while ((range = first_garbage(mirror))) {
		bool part = range->base.flags.partial_unmap;
		int err = part ? drm_gpusvm_range_evict(&mirror->gpusvm, &range->base) : 0;

		note(mirror, " gc(%u,%lx,%lx,%s,%d)", mirror->device->number, page_of(drm_gpusvm_range_start(&range->base)),
		     page_of(drm_gpusvm_range_end(&range->base)), part ? "part" : "whole", err);
		drop(mirror, range);
	}
}

/* What maps one page of a range, under the notifier lock: a row, and how many bytes behind its beginning. */
static struct drm_pagemap_addr *row_of(struct svmdev_range *range, unsigned long page, size_t *offset)
{
	struct drm_pagemap_addr *row = range->pages.dma_addr;
	unsigned long first = 0;

	while (page >= first + NR_PAGES(row->order)) {
		first += NR_PAGES(row->order);
		row++;
	}
	*offset = (page - first) << PAGE_SHIFT;
	return row;
}

/* ---- a fault */

static char place_of(const struct drm_pagemap_addr *row)
{
	unsigned long page;
	unsigned int device;

	return svmdev_is_own(row, &device, &page) ? '0' + device : 's';
}

/* The rows that map a range; equal ones that follow each other are counted. */
static void say_rows(struct svmdev_mirror *mirror, struct svmdev_range *range, char *text)
{
	unsigned long npages = pages_in(range), first = 0;
	struct drm_pagemap_addr *row = range->pages.dma_addr;

	drm_gpusvm_notifier_lock(&mirror->gpusvm);
	if (!drm_gpusvm_pages_valid(&mirror->gpusvm, &range->pages)) {
		drm_gpusvm_notifier_unlock(&mirror->gpusvm);
		say(text, " map(none)");
		return;
	}
	say(text, " map(%s", row->dir == DMA_BIDIRECTIONAL ? "rw" : "ro");
	while (first < npages) {
		char place = place_of(row);
		u64 order = row->order;
		unsigned long alike = 0;

		for (; first < npages && place_of(row) == place && row->order == order; row++, alike++)
			first += NR_PAGES(order);
		say(text, ",%c%llu*%lu", place, order, alike);
	}
	say(text, ")");
	drm_gpusvm_notifier_unlock(&mirror->gpusvm);
}

static int fault_once(struct svmdev_mirror *mirror, struct svmdev_command *command, const struct drm_gpusvm_ctx *ctx,
		      char *text, struct svmdev_range **found)
{
	struct svmdev *target = &svmdev_devices[command->target % SVMDEV_DEVICES];
	struct drm_gpusvm *gpusvm = &mirror->gpusvm;
	struct drm_gpusvm_range *base;
	unsigned long start, end;
	int err;

	*found = NULL;
	collect(mirror);
	base = drm_gpusvm_range_find_or_insert(gpusvm, command->addr, gpusvm->mm_start, gpusvm->mm_start + gpusvm->mm_range, ctx);
	if (IS_ERR(base)) {
		say(text, " ins(%ld)", PTR_ERR(base));
		return PTR_ERR(base);
	}
	*found = of_base(base);
	start = drm_gpusvm_range_start(base);
	end = drm_gpusvm_range_end(base);
	say(text, " rng(%lx,%lx,%s)", page_of(start), page_of(end), base->flags.migrate_devmem ? "mig" : "-");
	if (command->flags & SVMDEV_F_MIGRATE && base->flags.migrate_devmem)
		say(text, " pop(%d)", svmdev_populate(target, start, end, gpusvm->mm));
	err = drm_gpusvm_get_pages(gpusvm, &(*found)->pages, gpusvm->mm, &base->notifier->notifier, start, end, ctx);
	say(text, " get(%d)", err);
	return err;
}

static int fault(struct svmdev_mirror *mirror, struct svmdev_command *command, char *text)
{
	const struct drm_gpusvm_ctx ctx = {
		.device_private_page_owner = command->flags & SVMDEV_F_NO_OWNER ? NULL : mirror->device->owner,
		.check_pages_threshold = command->flags & SVMDEV_F_CHECK ? SZ_64K : 0,
		.read_only = !!(command->flags & SVMDEV_F_READ_ONLY),
		.devmem_possible = !(command->flags & SVMDEV_F_NO_DEVMEM),
		.devmem_only = !!(command->flags & SVMDEV_F_DEVMEM_ONLY),
		.allow_mixed = !!(command->flags & SVMDEV_F_ALLOW_MIXED),
	};
	int tries = command->flags & SVMDEV_F_RETRY ? TRIES : 1;
	struct svmdev_range *range;
	int err;

	for (;;) {
		err = fault_once(mirror, command, &ctx, text, &range);
		if (!err)
			say_rows(mirror, range, text);
		if (!err || !range || !--tries)
			return err;
		if (err == -EOPNOTSUPP)
			say(text, " ev(%d)", drm_gpusvm_range_evict(&mirror->gpusvm, &range->base));
	}
}

/* ---- what a device does through what is mapped */

static int access_page(struct svmdev_mirror *mirror, unsigned long addr, void *page, bool write)
{
	struct svmdev_range *range = range_at(mirror, addr);
	struct drm_pagemap_addr *row;
	size_t offset;
	int err = 0;

	if (!range)
		return -ENOENT;
	drm_gpusvm_notifier_lock(&mirror->gpusvm);
	if (!drm_gpusvm_pages_valid(&mirror->gpusvm, &range->pages)) {
		err = -EFAULT;
		goto unlock;
	}
	row = row_of(range, (addr - drm_gpusvm_range_start(&range->base)) >> PAGE_SHIFT, &offset);
	if (!write)
		memcpy(page, svmdev_bytes(row) + offset, PAGE_SIZE);
	else if (row->dir == DMA_BIDIRECTIONAL)
		memcpy(svmdev_bytes(row) + offset, page, PAGE_SIZE);
	else
		err = -EACCES;
unlock:
	drm_gpusvm_notifier_unlock(&mirror->gpusvm);
	return err;
}

static int access_pages(struct svmdev_mirror *mirror, struct svmdev_command *command, bool write)
{
	void *page = (void *)__get_free_page(GFP_KERNEL);
	int err = 0;

	if (!page)
		return -ENOMEM;
	for (; !err && command->done < command->n; command->done += !err) {
		unsigned long behind = command->done << PAGE_SHIFT;
		void __user *user = u64_to_user_ptr(command->data + behind);

		if (write && copy_from_user(page, user, PAGE_SIZE))
			err = -EINVAL;
		if (!err)
			err = access_page(mirror, command->addr + behind, page, write);
		if (!err && !write && copy_to_user(user, page, PAGE_SIZE))
			err = -EINVAL;
	}
	free_page((unsigned long)page);
	return err;
}

/* What a page maps to: NO_RANGE, NOT_MAPPED, IN_SYSTEM, or a device and a page of it. */
enum { NO_RANGE = -1, NOT_MAPPED = -2, IN_SYSTEM = -3 };
#define WHERE_DEVICE_SHIFT 32

static long where(struct svmdev_mirror *mirror, unsigned long addr)
{
	struct svmdev_range *range = range_at(mirror, addr);
	unsigned int device;
	unsigned long page;
	long found;
	size_t offset;

	if (!range)
		return NO_RANGE;
	drm_gpusvm_notifier_lock(&mirror->gpusvm);
	if (!drm_gpusvm_pages_valid(&mirror->gpusvm, &range->pages)) {
		found = NOT_MAPPED;
	} else {
		struct drm_pagemap_addr *row =
			row_of(range, (addr - drm_gpusvm_range_start(&range->base)) >> PAGE_SHIFT, &offset);

		found = IN_SYSTEM;
		if (svmdev_is_own(row, &device, &page))
			found = ((long)device << WHERE_DEVICE_SHIFT) + page + (offset >> PAGE_SHIFT);
	}
	drm_gpusvm_notifier_unlock(&mirror->gpusvm);
	return found;
}

/* Pages that are alike, or follow each other on a device, are counted. */
static void say_where(struct svmdev_mirror *mirror, struct svmdev_command *command, char *text)
{
	static const char letters[] = { '-', 'n', 's' };
	unsigned long i = 0;

	while (i < command->n) {
		long first = where(mirror, command->addr + (i << PAGE_SHIFT));
		unsigned long count = 1;

		while (i + count < command->n &&
		       where(mirror, command->addr + ((i + count) << PAGE_SHIFT)) == (first < 0 ? first : first + (long)count))
			count++;
		if (first < 0)
			say(text, " %c*%lu", letters[-first - 1], count);
		else
			say(text, " %ld:%lx*%lu", first >> WHERE_DEVICE_SHIFT,
			    first & ((1L << WHERE_DEVICE_SHIFT) - 1), count);
		i += count;
	}
}

/* ---- eviction, state */

/* The allocation that holds a page of the process, in memory of this device's owner. */
static struct svmdev_allocation *allocation_at(struct svmdev_mirror *mirror, unsigned long addr)
{
	struct svmdev_range *range = range_at(mirror, addr);
	unsigned long pfn = 0;
	struct hmm_range look = {
		.start = addr,
		.end = addr + PAGE_SIZE,
		.hmm_pfns = &pfn,
		.dev_private_owner = mirror->device->owner,
	};
	struct svmdev *device;
	struct page *page;
	int err;

	if (!range)
		return NULL;
	look.notifier = &range->base.notifier->notifier;
	do {
		look.notifier_seq = mmu_interval_read_begin(look.notifier);
		mmap_read_lock(mirror->gpusvm.mm);
		err = hmm_range_fault(&look);
		mmap_read_unlock(mirror->gpusvm.mm);
	} while (err == -EBUSY);
	if (err || !(pfn & HMM_PFN_VALID))
		return NULL;
	page = hmm_pfn_to_page(pfn);
	if (!is_device_private_page(page) && !is_device_coherent_page(page))
		return NULL;
	device = svmdev_of_page(page);
	return svmdev_allocation_of(device, svmdev_page_number(device, page));
}

static void say_state(struct svmdev_mirror *mirror, char *text)
{
	struct svmdev *device = mirror->device;

	say(text, " alloc=%lu rel=%lu inuse=%lu ranges=%zu notifiers=%zu gc=%zu maps=%ld",
	    device->allocated - mirror->allocated_before, device->released - mirror->released_before, device->in_use,
	    list_count_nodes(&mirror->ranges), list_count_nodes(&mirror->gpusvm.notifier_list),
	    list_count_nodes(&mirror->garbage), (long)(device->mapped - device->unmapped) - mirror->mapped_before);
}

static int give_events(struct svmdev_mirror *mirror, struct svmdev_command *command)
{
	struct svmdev_log *log = log_of(mirror);
	size_t length = READ_ONCE(log->length);
	char *events;

	/* what all have in common the first device gives */
	if (!length || (svmdev_one_log && mirror->device->number))
		return 0;
	events = vmalloc(length);
	if (!events)
		return -ENOMEM;
	/* what came meanwhile stays */
	spin_lock_irq(&log->lock);
	command->done = length;
	memcpy(events, log->text, length);
	log->length -= length;
	memmove(log->text, log->text + length, log->length);
	spin_unlock_irq(&log->lock);
	if (copy_to_user(u64_to_user_ptr(command->data), events, command->done))
		command->done = 0;
	vfree(events);
	return 0;
}

static int hold(struct svmdev_mirror *mirror, char *text)
{
	struct drm_pagemap *found;
	const char *how;

	if (mirror->held)
		return -EBUSY;
	found = svmdev_pagemap_get(mirror->device, &how);
	if (IS_ERR(found))
		return PTR_ERR(found);
	mirror->held = found;
	say(text, " %s#%lu", how, svmdev_serial(found));
	return 0;
}

static int release(struct svmdev_mirror *mirror)
{
	if (!mirror->held)
		return -ENOENT;
	drm_pagemap_put(mirror->held);
	mirror->held = NULL;
	return 0;
}

/* ---- one operation */

void svmdev_do(struct svmdev_mirror *mirror, unsigned int request, struct svmdev_command *command, char *text)
{
	struct svmdev *device = mirror->device;
	struct drm_gpusvm *gpusvm = &mirror->gpusvm;
	struct svmdev_range *range;

	switch (request) {
	case SVMDEV_FAULT:
		command->ret = fault(mirror, command, text);
		return;
	case SVMDEV_POPULATE:
		command->ret = svmdev_populate(device, command->addr, command->addr + (command->n << PAGE_SHIFT), gpusvm->mm);
		return;
	case SVMDEV_EVICT:
		command->ret = svmdev_evict(allocation_at(mirror, command->addr));
		return;
	case SVMDEV_EVICT_NTH:
		command->ret = svmdev_evict(svmdev_nth_allocation(device, command->n));
		return;
	case SVMDEV_READ:
	case SVMDEV_WRITE:
		command->ret = access_pages(mirror, command, request == SVMDEV_WRITE);
		return;
	case SVMDEV_COLLECT:
		collect(mirror);
		return;
	case SVMDEV_WHERE:
		say_where(mirror, command, text);
		return;
	case SVMDEV_STATE:
		say_state(mirror, text);
		return;
	case SVMDEV_EVENTS:
		command->ret = give_events(mirror, command);
		return;
	case SVMDEV_FAIL:
		if (command->target < SVMDEV_FAILURES)
			device->calls_until_failure[command->target] = command->n;
		else
			command->ret = -EINVAL;
		return;
	case SVMDEV_UNPLUG:
		svmdev_unplug(device, command);
		return;
	case SVMDEV_TIMESLICE:
		device->timeslice_ms = command->n;
		return;
	case SVMDEV_HOLD:
		command->ret = hold(mirror, text);
		return;
	case SVMDEV_RELEASE:
		command->ret = release(mirror);
		return;
	}
	/* the rest is about the range at an address */
	range = range_at(mirror, command->addr);
	if (!range)
		command->ret = -ENOENT;
	else if (request == SVMDEV_REVICT)
		command->ret = drm_gpusvm_range_evict(gpusvm, &range->base);
	else if (request == SVMDEV_DROP)
		drop(mirror, range);
	else if (request == SVMDEV_SCAN)
		command->done = drm_gpusvm_scan_mm(&range->base, device->owner, &device->pagemap);
	else
		command->ret = -ENOTTY;
}

/* ---- from open to close */

struct svmdev_mirror *svmdev_mirror_open(struct svmdev *device, unsigned long notifier_size)
{
	struct svmdev_mirror *mirror = kzalloc(sizeof(*mirror), GFP_KERNEL);
	int err;

	if (!mirror)
		return ERR_PTR(-ENOMEM);
	mirror->events.text = vmalloc(SVMDEV_LOG);
	if (!mirror->events.text) {
		kfree(mirror);
		return ERR_PTR(-ENOMEM);
	}
	spin_lock_init(&mirror->events.lock);
	mirror->device = device;
	mutex_init(&mirror->lock);
	spin_lock_init(&mirror->garbage_lock);
	INIT_LIST_HEAD(&mirror->garbage);
	INIT_LIST_HEAD(&mirror->ranges);
	mirror->allocated_before = device->allocated;
	mirror->released_before = device->released;
	/* coherent pages are unmapped that were not mapped (drm_pagemap_migrate_unmap_pages) */
	mirror->mapped_before = (long)(device->mapped - device->unmapped);
	device->timeslice_ms = 0;
	memset(device->calls_until_failure, 0, sizeof(device->calls_until_failure));
	err = drm_gpusvm_init(&mirror->gpusvm, "svmdev", current->mm, 0, TASK_SIZE, notifier_size, &gpusvm_ops, chunk_sizes,
			      ARRAY_SIZE(chunk_sizes));
	if (err) {
		vfree(mirror->events.text);
		kfree(mirror);
		return ERR_PTR(err);
	}
	drm_gpusvm_driver_set_lock(&mirror->gpusvm, &mirror->lock);
	return mirror;
}

void svmdev_mirror_close(struct svmdev_mirror *mirror)
{
	struct svmdev_range *range, *next;

	mutex_lock(&mirror->lock);
	list_for_each_entry_safe(range, next, &mirror->ranges, link)
		drop(mirror, range);
	drm_gpusvm_fini(&mirror->gpusvm);
	release(mirror);
	mutex_unlock(&mirror->lock);
	vfree(mirror->events.text);
	kfree(mirror);
}
