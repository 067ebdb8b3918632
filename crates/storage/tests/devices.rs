//! Block devices, by way of a loop device: where this user may make one.

#![cfg(test)]

use catena_storage::{
    ErrorKind, Hold, LocalFile, LockMode, Locking, OpenOptions, SpanKind, Storage, holders,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

struct Loop {
    device: PathBuf,
    folder: TempDir,
    mounted: bool,
}

impl Loop {
    /// A loop device over a new file, or the reason why there is none.
    fn new() -> Result<Self, String> {
        let this = Self::prepare()?;
        let file = this.folder.path().join("backing");
        std::fs::write(&file, vec![0xcc; SIZE as usize]).map_err(|error| error.to_string())?;
        this.attach(&file)
    }

    /// One over a file that has no room for what the device promises.
    fn without_room() -> Result<Self, String> {
        let mut this = Self::prepare()?;
        let folder = this.folder.path().display().to_string();
        run("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", &folder])?;
        this.mounted = true;
        let path = this.folder.path().join("backing");
        let file = File::create(&path).map_err(|error| error.to_string())?;
        file.set_len(SIZE).map_err(|error| error.to_string())?;
        this.attach(&path)
    }

    fn prepare() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may set up a loop device".into());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Err("there is no /dev/loop-control".into());
        }
        Ok(Self {
            device: PathBuf::new(),
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
            mounted: false,
        })
    }

    fn attach(mut self, file: &Path) -> Result<Self, String> {
        let file = file.display().to_string();
        self.device = run("losetup", &["--find", "--show", &file])?.trim().into();
        Ok(self)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if self.device != Path::new("") {
            report(run("losetup", &["--detach", &self.device.display().to_string()]));
        }
        if self.mounted {
            report(run(
                "umount",
                &["--lazy", &self.folder.path().display().to_string()],
            ));
        }
    }
}

/// Runs a command: what it says, or why it failed.
fn run(command: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(command)
        .args(arguments)
        .output()
        .map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn report(result: Result<String, String>) {
    if let Err(error) = result {
        eprintln!("{error}");
    }
}

#[test]
fn a_block_device_is_read_written_cleared_and_locked() {
    let device = match Loop::new() {
        Ok(device) => device,
        Err(reason) => return catena_testkit::not_tested(reason),
    };
    for direct in [false, true] {
        let options = OpenOptions::new().write(true).direct(direct).exclusive(true);
        let file = LocalFile::open(&device.device, &options).unwrap();
        assert!(file.is_block_device());
        assert_eq!(file.len().unwrap(), SIZE);
        assert_eq!(file.allocated().unwrap(), None);
        assert_eq!(file.locking(), Locking::Held);
        assert_eq!(direct, file.alignment().request > 1);
        let identity = file.identity().unwrap();
        assert_eq!((identity.inode, identity.len, identity.modified), (0, SIZE, None));

        let mut expected = vec![0x11; SIZE as usize];
        file.write_all_at(&expected, 0).unwrap();
        file.punch_hole(1001, 100_000).unwrap();
        expected[1001..101_001].fill(0);
        file.write_all_at(b"odd", 50_001).unwrap();
        expected[50_001..50_004].copy_from_slice(b"odd");
        file.punch_hole(SIZE - 700, u64::MAX).unwrap();
        expected[SIZE as usize - 700..].fill(0);
        // Within one block.
        file.punch_hole(200_001, 5).unwrap();
        expected[200_001..200_006].fill(0);
        file.flush().unwrap();
        let mut bytes = vec![0; SIZE as usize + 1];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), SIZE as usize);
        assert!(bytes[..SIZE as usize] == expected);

        let span = file.span_at(5).unwrap().unwrap();
        assert_eq!((span.kind, span.len), (SpanKind::Data, SIZE - 5));
        assert_eq!(file.span_at(SIZE).unwrap(), None);
        assert_eq!(file.read_at(&mut bytes, SIZE).unwrap(), 0);
        assert_eq!(
            file.write_all_at(&[1; 1024], SIZE - 512).unwrap_err().kind(),
            ErrorKind::NoSpace
        );
        file.set_len(SIZE).unwrap();
        assert_eq!(file.set_len(SIZE / 2).unwrap_err().kind(), ErrorKind::Unsupported);

        let taken = LocalFile::open(&device.device, &options.lock(LockMode::None)).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Locked, "{taken}");
        let locked = LocalFile::open(&device.device, &OpenOptions::new()).unwrap_err();
        assert!(locked.to_string().contains("this process"), "{locked}");
        let all = holders(&device.device).unwrap();
        assert!(all.iter().any(|holder| holder.pid == Some(std::process::id())
            && holder.hold == Hold::Locked(LockMode::Write.permissions())));
    }
}

#[test]
fn after_a_failed_flush_none_succeeds() {
    let device = match Loop::without_room() {
        Ok(device) => device,
        Err(reason) => return catena_testkit::not_tested(reason),
    };
    let file = LocalFile::open(&device.device, &OpenOptions::new().write(true)).unwrap();
    file.flush().unwrap();
    file.write_all_at(&vec![1; SIZE as usize], 0).unwrap();
    let first = file.flush().unwrap_err();
    assert!(first.io().is_some(), "{first:?}");
    // The kernel would now say that all is well.
    let second = file.clone().flush().unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Io);
    assert!(second.to_string().contains("an earlier flush failed"), "{second}");
}

#[test]
fn qemu_is_kept_off_a_block_device_too() {
    let device = match Loop::new() {
        Ok(device) => device,
        Err(reason) => return catena_testkit::not_tested(reason),
    };
    let path = device.device.display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]).unwrap();
    let file = LocalFile::open(&device.device, &OpenOptions::new().write(true)).unwrap();
    let error = run("qemu-img", &["info", &path]).unwrap_err();
    assert!(error.contains("Failed to get shared \"write\" lock"), "{error}");
    drop(file);
    run("qemu-img", &["info", &path]).unwrap();
}
