"""Linux's mm: folios, page tables, VMAs, interval notifiers, hmm, migration, dev_pagemap, CPU faults."""
