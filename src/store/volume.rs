//! What kind of volume a folder is on: one that goes with the container cannot keep a promise.

use std::path::Path;

/// The space that is left to others where nothing was configured: a tenth of the volume, at least 128 MiB and at most
/// 2 GiB. Blocks.
pub fn watermark(dir: &Path) -> u64 {
    const LEAST: u64 = 128 << 20;
    const MOST: u64 = 2 << 30;
    rustix::fs::statvfs(dir).map_or(LEAST, |stat| (stat.f_blocks * stat.f_frsize / 10).clamp(LEAST, MOST))
}

/// Why a folder's content will not outlive the machine or the pod; `None` where it looks lasting. Blocks.
pub(super) fn ephemeral(dir: &Path) -> Option<&'static str> {
    let dir = std::fs::canonicalize(dir).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    by_type(&dir).or_else(|| by_mount(&dir, &mounts))
}

#[cfg(target_os = "linux")]
fn by_type(dir: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(dir).ok()?.f_type as u64 & 0xffff_ffff {
        0x0102_1994 => Some("tmpfs: it is memory, and is gone after a restart"),
        0x8584_58f6 => Some("ramfs: it is memory, and is gone after a restart"),
        0x794c_7630 => Some("overlayfs: it is the container's own layer, and is gone with the container"),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn by_type(_: &Path) -> Option<&'static str> {
    None
}

/// Finds the mount that holds `dir`. In `mountinfo` the fourth field is the mounted part, the fifth the mount point.
fn by_mount(dir: &Path, mounts: &str) -> Option<&'static str> {
    let holding = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(3);
            Some((fields.next()?, Path::new(fields.next()?)))
        })
        .filter(|(_, point)| dir.starts_with(point))
        .max_by_key(|(_, point)| point.components().count());
    holding
        .filter(|(root, _)| root.contains("kubernetes.io~empty-dir"))
        .map(|_| "a Kubernetes emptyDir: it is gone with the pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 8:1 /var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/scratch /scratch rw - ext4 /dev/sda1 rw
41 22 8:2 / /scratch/data rw - ext4 /dev/sdb rw
";

    #[test]
    fn an_empty_dir_is_known_by_its_mount_and_only_below_it() {
        assert!(by_mount(Path::new("/scratch/queue"), MOUNTS).is_some());
        assert!(by_mount(Path::new("/scratch/data/queue"), MOUNTS).is_none());
        assert!(by_mount(Path::new("/scratchy"), MOUNTS).is_none());
    }

    #[test]
    fn memory_is_known_by_its_type() {
        if Path::new("/dev/shm").is_dir() {
            assert!(ephemeral(Path::new("/dev/shm")).is_some_and(|why| why.contains("tmpfs")));
        }
    }
}
