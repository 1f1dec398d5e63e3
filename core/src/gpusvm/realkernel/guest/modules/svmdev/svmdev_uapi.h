/* SPDX-License-Identifier: MIT OR GPL-2.0 */
#ifndef SVMDEV_UAPI_H
#define SVMDEV_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define SVMDEV_TEXT 8192	/* of the buffer that an answer's text goes to */
#define SVMDEV_LOG (1 << 20)	/* of the buffer that events go to */

/* One operation. ret is 0 or a negative errno; done counts pages or bytes, or is the result of a scan. */
struct svmdev_command {
	__u64 addr;	/* of the process's memory */
	__u64 n;	/* pages, or a number */
	__u64 flags;	/* SVMDEV_F_* */
	__u64 target;	/* device to migrate to, or what is to fail */
	__u64 data;	/* user buffer: pages of READ and WRITE, text of EVENTS */
	__u64 text;	/* user buffer of SVMDEV_TEXT bytes */
	__s64 ret;
	__u64 done;
};

#define SVMDEV_FAULT	 _IO(0xe5, 1)
#define SVMDEV_POPULATE	 _IO(0xe5, 2)
#define SVMDEV_EVICT	 _IO(0xe5, 3)	/* the allocation that holds a page */
#define SVMDEV_EVICT_NTH _IO(0xe5, 4)	/* the n-th oldest allocation */
#define SVMDEV_READ	 _IO(0xe5, 5)
#define SVMDEV_WRITE	 _IO(0xe5, 6)
#define SVMDEV_REVICT	 _IO(0xe5, 7)	/* drm_gpusvm_range_evict */
#define SVMDEV_DROP	 _IO(0xe5, 8)	/* drm_gpusvm_range_remove */
#define SVMDEV_COLLECT	 _IO(0xe5, 9)
#define SVMDEV_SCAN	 _IO(0xe5, 10)
#define SVMDEV_WHERE	 _IO(0xe5, 11)
#define SVMDEV_STATE	 _IO(0xe5, 12)
#define SVMDEV_FAIL	 _IO(0xe5, 13)
#define SVMDEV_EVENTS	 _IO(0xe5, 14)
#define SVMDEV_UNPLUG	 _IO(0xe5, 15)
#define SVMDEV_TIMESLICE _IO(0xe5, 16)	/* of what is migrated to the device from now on: n milliseconds */
#define SVMDEV_HOLD	 _IO(0xe5, 17)	/* keep the device's pagemap, and say how it was found */
#define SVMDEV_RELEASE	 _IO(0xe5, 18)

#define SVMDEV_F_MIGRATE	1
#define SVMDEV_F_DEVMEM_ONLY	2
#define SVMDEV_F_READ_ONLY	4
#define SVMDEV_F_ALLOW_MIXED	8
#define SVMDEV_F_RETRY		16
#define SVMDEV_F_CHECK		32	/* check_pages_threshold of 64 KiB */
#define SVMDEV_F_NO_DEVMEM	64
#define SVMDEV_F_NO_OWNER	128

#endif
