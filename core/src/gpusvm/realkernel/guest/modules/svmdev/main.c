// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * svmdev: devices without hardware on the kernel's own drm_gpusvm and drm_pagemap.  Their memory is RAM behind
 * device-private pages, their engine is memcpy, and each answers an operation with what every stage of it came to.
 */
#include <linux/device/faux.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>

#include "svmdev.h"

static bool same_owner = true;
module_param(same_owner, bool, 0444);
MODULE_PARM_DESC(same_owner, "All devices reach each other's memory");

static unsigned long device_pages = 4096;
module_param(device_pages, ulong, 0444);
MODULE_PARM_DESC(device_pages, "Pages of memory of each device");

static unsigned long notifier_size = SZ_512M;
module_param(notifier_size, ulong, 0444);
MODULE_PARM_DESC(notifier_size, "Bytes that one notifier covers");

bool svmdev_migrate_within;
module_param_named(can_migrate_same_pagemap, svmdev_migrate_within, bool, 0444);
MODULE_PARM_DESC(can_migrate_same_pagemap, "Pages that are on the device already may move within it");

bool svmdev_make_room;
module_param_named(make_room, svmdev_make_room, bool, 0444);
MODULE_PARM_DESC(make_room, "Where a device is full, its oldest allocations go home");

bool svmdev_cached;
module_param_named(cached, svmdev_cached, bool, 0444);
MODULE_PARM_DESC(cached, "A device's pagemap is made when it is wanted, and kept in a cache that a shrinker empties");

bool svmdev_coherent;
module_param_named(coherent, svmdev_coherent, bool, 0444);
MODULE_PARM_DESC(coherent, "The CPU reaches the devices' memory too");

unsigned long svmdev_coherent_at = 0x140000000UL;
module_param_named(coherent_at, svmdev_coherent_at, ulong, 0444);
MODULE_PARM_DESC(coherent_at, "Where that is: 128 MiB for each device, that the kernel leaves alone");

bool svmdev_one_log;
module_param_named(one_log, svmdev_one_log, bool, 0444);
MODULE_PARM_DESC(one_log, "The events of all files stand in one row, in their order");

unsigned long svmdev_base = 0x100000000000UL;
module_param_named(base, svmdev_base, ulong, 0444);
MODULE_PARM_DESC(base, "Address from which pages are counted");

struct svmdev svmdev_devices[SVMDEV_DEVICES];
struct svmdev_log svmdev_all;

#define LONGEST_EVENT 256

void svmdev_note(struct svmdev_log *log, const char *format, ...)
{
	unsigned long flags;
	va_list arguments;

	spin_lock_irqsave(&log->lock, flags);
	va_start(arguments, format);
	if (log->length + LONGEST_EVENT < SVMDEV_LOG)
		log->length += vscnprintf(log->text + log->length, LONGEST_EVENT, format, arguments);
	va_end(arguments);
	spin_unlock_irqrestore(&log->lock, flags);
}

static long svmdev_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	struct svmdev_mirror *mirror = file->private_data;
	void __user *user = (void __user *)argument;
	struct svmdev_command command;
	char *text;
	long ret = 0;

	if (_IOC_TYPE(request) != _IOC_TYPE(SVMDEV_FAULT))
		return -ENOTTY;
	if (copy_from_user(&command, user, sizeof(command)))
		return -EFAULT;
	text = kzalloc(SVMDEV_TEXT, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	command.ret = 0;
	command.done = 0;
	mutex_lock(&mirror->lock);
	svmdev_do(mirror, request, &command, text);
	mutex_unlock(&mirror->lock);
	if (copy_to_user(u64_to_user_ptr(command.text), text, strlen(text) + 1) ||
	    copy_to_user(user, &command, sizeof(command)))
		ret = -EFAULT;
	kfree(text);
	return ret;
}

static int svmdev_open(struct inode *inode, struct file *file)
{
	struct svmdev *device = container_of(file->private_data, struct svmdev, misc);
	struct svmdev_mirror *mirror;
	int err = 0;

	mutex_lock(&device->files_lock);
	if (!device->files)
		err = svmdev_plug(device);
	mirror = err ? ERR_PTR(err) : svmdev_mirror_open(device, notifier_size);
	device->files += !IS_ERR(mirror);
	mutex_unlock(&device->files_lock);
	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	file->private_data = mirror;
	return 0;
}

static int svmdev_release(struct inode *inode, struct file *file)
{
	struct svmdev_mirror *mirror = file->private_data;
	struct svmdev *device = mirror->device;

	svmdev_mirror_close(mirror);
	mutex_lock(&device->files_lock);
	device->files--;
	mutex_unlock(&device->files_lock);
	return 0;
}

static const struct file_operations svmdev_fops = {
	.owner = THIS_MODULE,
	.open = svmdev_open,
	.release = svmdev_release,
	.unlocked_ioctl = svmdev_ioctl,
};

static const struct file_operations drm_fops = { .owner = THIS_MODULE };

static const struct drm_driver driver = {
	.name = "svmdev",
	.desc = "SVM without hardware",
	.major = 1,
	.fops = &drm_fops,
};

static const char *const names[SVMDEV_DEVICES] = { "svmdev0", "svmdev1" };

/* What belongs to the device that may be unplugged; its memory does not. */
static int make_device(struct svmdev *device)
{
	int err;

	device->faux = faux_device_create(names[device->number], NULL, NULL);
	if (!device->faux)
		return -ENODEV;
	err = dma_coerce_mask_and_coherent(&device->faux->dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	device->drm = drm_dev_alloc(&driver, &device->faux->dev);
	if (IS_ERR(device->drm))
		return PTR_ERR(device->drm);
	err = drm_dev_register(device->drm, 0);
	return err ?: svmdev_pagemap_init(device);
}

/*
 * Makes the device anew for who opens it when nobody has it open: after an unplug, and always with a cache, so that what
 * was cached before is not seen again.
 */
int svmdev_plug(struct svmdev *device)
{
	if (!device->unplugged && !svmdev_cached)
		return 0;
	if (!device->unplugged)
		drm_dev_unplug(device->drm);
	/* what is device-managed, as the cache and its shrinker, ends here */
	faux_device_destroy(device->faux);
	svmdev_pagemap_fini(device);
	drm_dev_put(device->drm);
	device->unplugged = false;
	return make_device(device);
}

/* Nothing new comes to the device; what is there goes home, as far as it can. */
void svmdev_unplug(struct svmdev *device, struct svmdev_command *command)
{
	struct svmdev_allocation *allocation;
	unsigned long busy = 0;

	if (device->unplugged) {
		command->ret = -ENODEV;
		return;
	}
	drm_dev_unplug(device->drm);
	device->unplugged = true;
	while ((allocation = svmdev_nth_allocation(device, busy))) {
		if (svmdev_evict(allocation))
			busy++;
		else
			command->done++;
	}
	if (busy)
		command->ret = -EBUSY;
}

static int device_init(unsigned int number)
{
	struct svmdev *device = &svmdev_devices[number];
	int err;

	device->number = number;
	mutex_init(&device->files_lock);
	err = svmdev_memory_init(device, same_owner ? svmdev_devices : device, device_pages);
	if (!err)
		err = make_device(device);
	if (err)
		return err;
	device->misc.minor = MISC_DYNAMIC_MINOR;
	device->misc.name = names[number];
	device->misc.fops = &svmdev_fops;
	return misc_register(&device->misc);
}

/* The pagemaps hold the module: it cannot be unloaded, so that there is nothing to undo. */
static int __init svmdev_init(void)
{
	spin_lock_init(&svmdev_all.lock);
	svmdev_all.text = vmalloc(SVMDEV_LOG);
	if (!svmdev_all.text)
		return -ENOMEM;
	for (unsigned int number = 0; number < SVMDEV_DEVICES; number++) {
		int err = device_init(number);

		if (err)
			return err;
	}
	return 0;
}
module_init(svmdev_init);

MODULE_DESCRIPTION("SVM devices without hardware");
MODULE_LICENSE("Dual MIT/GPL");
