//! Pinned links: on which device one is, which the library does not say.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Commands of bpf(2) (Linux `include/uapi/linux/bpf.h`).
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// What `BPF_OBJ_GET` takes.
#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// What `BPF_OBJ_GET_INFO_BY_FD` takes.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The first bytes of `struct bpf_link_info`, as links of XDP and of tcx have them.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: [u32; 11],
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: bpf(2) reads as many bytes of the attributes as it is told that they have. What they point to is the
    // caller's, lives on, and is as long as the attributes say.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// The index of the device that a pinned link of XDP or tcx is on; 0 when that has gone.
///
/// # Errors
/// When there is no such link.
pub(crate) fn device_of(pin: &Path) -> io::Result<u32> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = ObjGet {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    let fd = bpf(BPF_OBJ_GET, &get)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let by_fd = InfoByFd {
        fd: fd.as_raw_fd().unsigned_abs(),
        length: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &by_fd)?;
    Ok(info.ifindex)
}
