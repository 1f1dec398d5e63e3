// SPDX-License-Identifier: MIT OR GPL-2.0
/* Device memory: pages, allocations, copies, and the ops of drm_pagemap. */
#include <linux/bitmap.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_pagemap_util.h>

#include "svmdev.h"

#define LARGEST_ALIGNMENT 512UL		/* pages */
#define DEVICE_SHIFT 40			/* in an address: which device, above which byte of its memory */

static struct svmdev *of_dpagemap(struct drm_pagemap *dpagemap)
{
	return container_of(dpagemap, struct svmdev_pagemap, base)->device;
}

unsigned long svmdev_serial(struct drm_pagemap *dpagemap)
{
	return container_of(dpagemap, struct svmdev_pagemap, base)->serial;
}

struct svmdev *svmdev_of_page(struct page *page)
{
	return container_of(page_pgmap(page), struct svmdev, pagemap);
}

unsigned long svmdev_page_number(struct svmdev *device, struct page *page)
{
	return page_to_pfn(page) - PHYS_PFN(device->pagemap.range.start);
}

bool svmdev_is_own(const struct drm_pagemap_addr *mapped, unsigned int *device, unsigned long *page)
{
	if (mapped->proto == DRM_INTERCONNECT_SYSTEM)
		return false;
	*device = (mapped->addr >> DEVICE_SHIFT) - 1;
	*page = (mapped->addr & (BIT_ULL(DEVICE_SHIFT) - 1)) >> PAGE_SHIFT;
	return true;
}

/* What a device would reach: system memory is mapped one to one. */
u8 *svmdev_bytes(const struct drm_pagemap_addr *mapped)
{
	unsigned long page;
	unsigned int device;

	if (!svmdev_is_own(mapped, &device, &page))
		return phys_to_virt(mapped->addr);
	return svmdev_devices[device].bytes + (page << PAGE_SHIFT);
}

/* Counts down to the call that is to fail. */
static bool fails(struct svmdev *device, enum svmdev_failure failure)
{
	unsigned long flags;
	bool now;

	spin_lock_irqsave(&device->lock, flags);
	now = device->calls_until_failure[failure] && !--device->calls_until_failure[failure];
	spin_unlock_irqrestore(&device->lock, flags);
	return now;
}

/* ---- allocations */

/* First fit, aligned to its size, the lowest pages first; its bytes are 0. */
static struct svmdev_allocation *allocate(struct svmdev *device, unsigned long npages)
{
	unsigned long align = min(roundup_pow_of_two(npages), LARGEST_ALIGNMENT) - 1;
	struct svmdev_allocation *allocation;
	unsigned long first, flags;

	allocation = kzalloc(sizeof(*allocation), GFP_KERNEL);
	if (!allocation)
		return NULL;
	spin_lock_irqsave(&device->lock, flags);
	first = bitmap_find_next_zero_area(device->used, device->npages, 0, npages, align);
	if (first + npages > device->npages) {
		spin_unlock_irqrestore(&device->lock, flags);
		kfree(allocation);
		return NULL;
	}
	bitmap_set(device->used, first, npages);
	list_add_tail(&allocation->link, &device->allocations);
	device->allocated++;
	device->in_use += npages;
	spin_unlock_irqrestore(&device->lock, flags);

	kref_init(&allocation->ref);
	allocation->device = device;
	allocation->first = first;
	allocation->npages = npages;
	memset(device->bytes + (first << PAGE_SHIFT), 0, npages << PAGE_SHIFT);
	return allocation;
}

static void free_allocation(struct kref *ref)
{
	kfree(container_of(ref, struct svmdev_allocation, ref));
}

static struct svmdev_allocation *find(struct svmdev *device, unsigned long wanted, bool by_age)
{
	struct svmdev_allocation *each, *found = NULL;
	unsigned long flags, age = 0;

	spin_lock_irqsave(&device->lock, flags);
	list_for_each_entry(each, &device->allocations, link) {
		if (by_age ? age++ != wanted : wanted - each->first >= each->npages)
			continue;
		if (kref_get_unless_zero(&each->ref))
			found = each;
		break;
	}
	spin_unlock_irqrestore(&device->lock, flags);
	return found;
}

struct svmdev_allocation *svmdev_allocation_of(struct svmdev *device, unsigned long page)
{
	return find(device, page, false);
}

struct svmdev_allocation *svmdev_nth_allocation(struct svmdev *device, unsigned long n)
{
	return find(device, n, true);
}

int svmdev_evict(struct svmdev_allocation *allocation)
{
	int err;

	if (!allocation)
		return -ENOENT;
	err = drm_pagemap_evict_to_ram(&allocation->devmem);
	kref_put(&allocation->ref, free_allocation);
	return err;
}

/* ---- ops on an allocation */

/* Its last folio is gone, which may be in atomic context. */
static void devmem_release(struct drm_pagemap_devmem *devmem)
{
	struct svmdev_allocation *allocation = container_of(devmem, struct svmdev_allocation, devmem);
	struct svmdev *device = allocation->device;
	unsigned long flags;

	spin_lock_irqsave(&device->lock, flags);
	bitmap_clear(device->used, allocation->first, allocation->npages);
	list_del_init(&allocation->link);
	device->released++;
	device->in_use -= allocation->npages;
	spin_unlock_irqrestore(&device->lock, flags);
	kref_put(&allocation->ref, free_allocation);
}

static int populate_devmem_pfn(struct drm_pagemap_devmem *devmem, unsigned long npages, unsigned long *pfn)
{
	struct svmdev_allocation *allocation = container_of(devmem, struct svmdev_allocation, devmem);
	unsigned long first = PHYS_PFN(allocation->device->pagemap.range.start) + allocation->first;

	if (fails(allocation->device, SVMDEV_FAIL_POPULATE))
		return -ENOMEM;
	for (unsigned long i = 0; i < npages; i++)
		pfn[i] = first + i;
	return 0;
}

/* Says whether pages that have a timeslice stayed as long as it lasts. */
static void note_timeslice(struct page *page)
{
	struct svmdev *device = svmdev_of_page(page);
	struct svmdev_allocation *allocation;

	if (!svmdev_one_log || !device->timeslice_ms)
		return;
	allocation = svmdev_allocation_of(device, svmdev_page_number(device, page));
	if (!allocation)
		return;
	svmdev_note(&svmdev_all, " copy(%u,%s)", device->number,
		    time_before64(get_jiffies_64(), allocation->devmem.timeslice_expiration) ? "early" : "late");
	kref_put(&allocation->ref, free_allocation);
}

static int copy(struct page **pages, struct drm_pagemap_addr *mapped, unsigned long npages, bool to_device)
{
	enum svmdev_failure failure = to_device ? SVMDEV_FAIL_COPY_TO_DEVMEM : SVMDEV_FAIL_COPY_TO_RAM;
	bool asked = false;

	for (unsigned long i = 0; i < npages;) {
		struct svmdev *device;
		size_t size;
		u8 *own;

		/* on the way to RAM a page that stays where it is, perhaps another device's, stands here and is mapped nowhere */
		if (!pages[i] || (!to_device && !mapped[i].addr)) {
			i++;
			continue;
		}
		device = svmdev_of_page(pages[i]);
		if (!asked && fails(device, failure))
			return -EIO;
		if (!asked && !to_device)
			note_timeslice(pages[i]);
		asked = true;
		if (!mapped[i].addr) {
			i++;
			continue;
		}
		own = device->bytes + (svmdev_page_number(device, pages[i]) << PAGE_SHIFT);
		size = PAGE_SIZE << mapped[i].order;
		if (to_device)
			memcpy(own, svmdev_bytes(&mapped[i]), size);
		else
			memcpy(svmdev_bytes(&mapped[i]), own, size);
		i += NR_PAGES(mapped[i].order);
	}
	return 0;
}

static int copy_to_devmem(struct page **pages, struct drm_pagemap_addr *mapped, unsigned long npages, struct dma_fence *fence)
{
	return copy(pages, mapped, npages, true);
}

static int copy_to_ram(struct page **pages, struct drm_pagemap_addr *mapped, unsigned long npages, struct dma_fence *fence)
{
	return copy(pages, mapped, npages, false);
}

static const struct drm_pagemap_devmem_ops devmem_ops = {
	.devmem_release = devmem_release,
	.populate_devmem_pfn = populate_devmem_pfn,
	.copy_to_devmem = copy_to_devmem,
	.copy_to_ram = copy_to_ram,
};

/* ---- ops on the pagemap */

static struct drm_pagemap_addr device_map(struct drm_pagemap *dpagemap, struct device *dev, struct page *page,
					  unsigned int order, enum dma_data_direction dir)
{
	struct svmdev *device = of_dpagemap(dpagemap);
	dma_addr_t byte = (dma_addr_t)svmdev_page_number(device, page) << PAGE_SHIFT;

	device->mapped++;
	return drm_pagemap_addr_encode(((dma_addr_t)(device->number + 1) << DEVICE_SHIFT) | byte,
				       DRM_INTERCONNECT_DRIVER, order, dir);
}

static void device_unmap(struct drm_pagemap *dpagemap, struct device *dev, const struct drm_pagemap_addr *mapped)
{
	of_dpagemap(dpagemap)->unmapped++;
}

/* Allocates, and where it is asked for makes others go home that are in the way, the oldest first. */
static struct svmdev_allocation *make_room(struct svmdev *device, unsigned long npages)
{
	struct svmdev_allocation *allocation = allocate(device, npages);
	unsigned long busy = 0;

	while (!allocation && svmdev_make_room && npages <= device->npages) {
		struct svmdev_allocation *oldest = svmdev_nth_allocation(device, busy);

		if (!oldest)
			break;
		if (svmdev_evict(oldest))
			busy++;
		else
			allocation = allocate(device, npages);
	}
	return allocation;
}

static int populate_mm(struct drm_pagemap *dpagemap, unsigned long start, unsigned long end, struct mm_struct *mm,
		       unsigned long timeslice_ms)
{
	struct drm_pagemap_migrate_details details = {
		.timeslice_ms = timeslice_ms,
		.can_migrate_same_pagemap = svmdev_migrate_within,
	};
	struct svmdev *device = of_dpagemap(dpagemap);
	struct svmdev_allocation *allocation;
	int err, index;

	if (!drm_dev_enter(device->drm, &index))
		return -ENODEV;
	allocation = fails(device, SVMDEV_FAIL_ALLOC) ? NULL : make_room(device, (end - start) >> PAGE_SHIFT);
	if (allocation) {
		drm_pagemap_devmem_init(&allocation->devmem, device->drm->dev, mm, &devmem_ops, dpagemap, end - start, NULL);
		/* migrate_to_devmem takes one reference, whatever comes of it */
		kref_get(&allocation->ref);
		err = drm_pagemap_migrate_to_devmem(&allocation->devmem, mm, start, end, &details);
		kref_put(&allocation->ref, free_allocation);
	} else {
		err = -ENOMEM;
	}
	drm_dev_exit(index);
	return err;
}

/* Nobody uses it.  Whoever finds it all the same finds memory that is still its own. */
static void destroy(struct drm_pagemap *dpagemap, bool is_atomic_or_reclaim)
{
	struct svmdev_pagemap *pagemap = container_of(dpagemap, struct svmdev_pagemap, base);
	struct svmdev *device = pagemap->device;
	unsigned long flags;

	if (svmdev_cached)
		svmdev_note(&svmdev_all, " destroy(%u,%lu,%d)", device->number, pagemap->serial, is_atomic_or_reclaim);
	spin_lock_irqsave(&device->lock, flags);
	list_add_tail(&pagemap->link, &device->destroyed);
	spin_unlock_irqrestore(&device->lock, flags);
}

static const struct drm_pagemap_ops dpagemap_ops = {
	.device_map = device_map,
	.device_unmap = device_unmap,
	.populate_mm = populate_mm,
	.destroy = destroy,
};

static struct svmdev_pagemap *make_pagemap(struct svmdev *device)
{
	struct svmdev_pagemap *pagemap = kzalloc(sizeof(*pagemap), GFP_KERNEL);
	int err;

	if (!pagemap)
		return ERR_PTR(-ENOMEM);
	pagemap->device = device;
	pagemap->serial = ++device->serials;
	err = drm_pagemap_init(&pagemap->base, &device->pagemap, device->drm, &dpagemap_ops);
	if (err) {
		kfree(pagemap);
		return ERR_PTR(err);
	}
	return pagemap;
}

struct drm_pagemap *svmdev_pagemap_get(struct svmdev *device, const char **how)
{
	struct drm_pagemap *found;
	struct svmdev_pagemap *made;
	int err;

	*how = "active";
	if (!device->cache)
		return drm_pagemap_get(&device->plain->base);
	found = drm_pagemap_get_from_cache_if_active(device->cache);
	if (found)
		return found;
	err = drm_pagemap_cache_lock_lookup(device->cache);
	if (err)
		return ERR_PTR(err);
	*how = "revived";
	found = drm_pagemap_get_from_cache(device->cache);
	if (!found) {
		*how = "new";
		made = make_pagemap(device);
		found = IS_ERR(made) ? ERR_CAST(made) : &made->base;
		if (!IS_ERR(found))
			drm_pagemap_cache_set_pagemap(device->cache, found);
	}
	drm_pagemap_cache_unlock_lookup(device->cache);
	return found;
}

int svmdev_populate(struct svmdev *device, unsigned long start, unsigned long end, struct mm_struct *mm)
{
	const char *how;
	struct drm_pagemap *dpagemap = svmdev_pagemap_get(device, &how);
	int err;

	if (IS_ERR(dpagemap))
		return PTR_ERR(dpagemap);
	err = drm_pagemap_populate_mm(dpagemap, start, end, mm, device->timeslice_ms);
	drm_pagemap_put(dpagemap);
	return err;
}

/* After the device's own are made. */
int svmdev_pagemap_init(struct svmdev *device)
{
	struct drm_pagemap_shrinker *shrinker;
	struct svmdev_pagemap *pagemap;

	device->serials = 0;
	if (!svmdev_cached) {
		pagemap = make_pagemap(device);
		if (IS_ERR(pagemap))
			return PTR_ERR(pagemap);
		device->plain = pagemap;
		return 0;
	}
	shrinker = drm_pagemap_shrinker_create_devm(device->drm);
	if (IS_ERR(shrinker))
		return PTR_ERR(shrinker);
	device->cache = drm_pagemap_cache_create_devm(shrinker);
	return PTR_ERR_OR_ZERO(device->cache);
}

/* After nobody uses them any more. */
void svmdev_pagemap_fini(struct svmdev *device)
{
	struct svmdev_pagemap *pagemap, *next;

	if (device->plain)
		drm_pagemap_put(&device->plain->base);
	device->plain = NULL;
	device->cache = NULL;
	list_for_each_entry_safe(pagemap, next, &device->destroyed, link) {
		list_del(&pagemap->link);
		kfree(pagemap);
	}
}

/* The device's place among physical addresses, and what stands behind it there. */
static int place(struct svmdev *device)
{
	unsigned long size = ALIGN(device->npages << PAGE_SHIFT, SZ_128M);
	struct resource *resource;

	if (svmdev_coherent) {
		device->pagemap.type = MEMORY_DEVICE_COHERENT;
		device->pagemap.range.start = svmdev_coherent_at + device->number * size;
		device->pagemap.range.end = device->pagemap.range.start + size - 1;
		return 0;
	}
	device->bytes = vzalloc(device->npages << PAGE_SHIFT);
	if (!device->bytes)
		return -ENOMEM;
	resource = request_free_mem_region(&iomem_resource, size, "svmdev");
	if (IS_ERR(resource))
		return PTR_ERR(resource);
	device->pagemap.type = MEMORY_DEVICE_PRIVATE;
	device->pagemap.range.start = resource->start;
	device->pagemap.range.end = resource->end;
	return 0;
}

int svmdev_memory_init(struct svmdev *device, void *owner, unsigned long npages)
{
	void *mapped;
	int err;

	spin_lock_init(&device->lock);
	INIT_LIST_HEAD(&device->allocations);
	INIT_LIST_HEAD(&device->destroyed);
	device->owner = owner;
	device->npages = npages;
	device->used = bitmap_zalloc(npages, GFP_KERNEL);
	if (!device->used)
		return -ENOMEM;
	err = place(device);
	if (err)
		return err;
	device->pagemap.nr_range = 1;
	device->pagemap.ops = drm_pagemap_pagemap_ops_get();
	device->pagemap.owner = owner;
	mapped = memremap_pages(&device->pagemap, numa_node_id());
	if (IS_ERR(mapped))
		return PTR_ERR(mapped);
	if (svmdev_coherent)
		device->bytes = mapped;
	return 0;
}
