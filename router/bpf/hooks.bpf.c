// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// All hooks in one object, so that they share their maps: a file for each kind.
#include "pinhole.bpf.c"
#include "tc.bpf.c"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
