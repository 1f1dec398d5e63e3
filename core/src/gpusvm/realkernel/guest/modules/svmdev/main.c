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

static bool can_migrate_same_pagemap;
module_param(can_migrate_same_pagemap, bool, 0444);
MODULE_PARM_DESC(can_migrate_same_pagemap, "Pages that are on the device already may move within it");

unsigned long svmdev_base = 0x100000000000UL;
module_param_named(base, svmdev_base, ulong, 0444);
MODULE_PARM_DESC(base, "Address from which pages are counted");

struct svmdev svmdev_devices[SVMDEV_DEVICES];

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
	struct svmdev_mirror *mirror = svmdev_mirror_open(device, notifier_size);

	if (IS_ERR(mirror))
		return PTR_ERR(mirror);
	file->private_data = mirror;
	return 0;
}

static int svmdev_release(struct inode *inode, struct file *file)
{
	svmdev_mirror_close(file->private_data);
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

static int device_init(unsigned int number)
{
	struct svmdev *device = &svmdev_devices[number];
	int err;

	device->number = number;
	device->faux = faux_device_create(names[number], NULL, NULL);
	if (!device->faux)
		return -ENODEV;
	err = dma_coerce_mask_and_coherent(&device->faux->dev, DMA_BIT_MASK(64));
	if (err)
		return err;
	device->drm = drm_dev_alloc(&driver, &device->faux->dev);
	if (IS_ERR(device->drm))
		return PTR_ERR(device->drm);
	err = svmdev_memory_init(device, same_owner ? svmdev_devices : device, device_pages, can_migrate_same_pagemap);
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
