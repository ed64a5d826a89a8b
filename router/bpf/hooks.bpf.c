// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 OR MIT
//
// All hooks in one object, so that they share their maps: a file for each kind.
#include "tc.bpf.c"
#include "xdp.bpf.c"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
