//! Domains as people and programs write them, over images that are there: a number says which.
//!
//! A [`Forest`] is a folder of images of every format, alone and in chains, whole and broken, with what else disks are on:
//! loop devices, a folder, a server. [`Forest::guest`] draws a guest whose disks are some of them, with XML that gives
//! none, some or all layers of each, and whatever else XML may say of a disk. Nothing here knows what Catena makes of it.

mod elements;
mod images;

use std::fs::Permissions;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::libvirt::{Daemon, Guest};
use crate::{Dice, Folder};

/// The number of the passphrase `secret`, of which encrypted images of a forest are.
pub const PASSPHRASE: &str = "11111111-2222-3333-4444-555555555555";
/// The use of the key to a Ceph cluster, and to an iSCSI server.
pub const KEYS: [(&str, &str); 2] = [("ceph", "cluster key"), ("iscsi", "server key")];

/// An image, as XML gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where it is: a whole path.
    pub path: String,
    /// Its format in libvirt's words.
    pub format: &'static str,
    /// Whether it is a block device.
    pub block: bool,
    /// Whether its content is encrypted.
    pub luks: bool,
    /// The path of its data file.
    pub store: Option<String>,
}

/// Images, and the rest that disks are on.
#[derive(Debug)]
pub struct Forest {
    seed: u64,
    folder: Folder,
    /// Images that nobody else writes, each with the layers below it: whole chains.
    whole: Vec<Vec<Layer>>,
    /// The active images of chains that break somewhere, or go on where it is not known.
    odd: Vec<Layer>,
    loops: Vec<LoopDevice>,
    server: Server,
}

/// A file as a block device, until it is dropped.
#[derive(Debug)]
struct LoopDevice {
    path: String,
    /// Whose the device was: libvirt gives it away.
    owner: (u32, u32),
}

impl LoopDevice {
    fn over(path: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()
            .expect("losetup");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let metadata = std::fs::metadata(&path).expect("a loop device");
        Self {
            path,
            owner: (metadata.uid(), metadata.gid()),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let (user, group) = self.owner;
        chown(&self.path, Some(user), Some(group)).ok();
        Command::new("losetup")
            .args(["--detach", &self.path])
            .status()
            .ok();
    }
}

/// An NBD server, until it is dropped.
#[derive(Debug)]
struct Server {
    process: Child,
    socket: String,
}

impl Server {
    fn of(image: &Path, socket: &Path) -> Self {
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "qemu-nbd",
                "--persistent",
                "--shared=0",
                "--format=raw",
            ])
            .args(["--export-name=disk", "--socket"])
            .arg(socket)
            .arg(image)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-nbd");
        let start = Instant::now();
        while !socket.exists() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::set_permissions(socket, Permissions::from_mode(0o777)).expect("the socket");
        Self {
            process,
            socket: socket.display().to_string(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Default for Forest {
    fn default() -> Self {
        Self::new()
    }
}

impl Forest {
    /// Makes the images; those that are drawn are those of number 0.
    ///
    /// # Panics
    /// If a tool fails.
    #[must_use]
    pub fn new() -> Self {
        Self::grown(0)
    }

    /// Makes the images of a number.
    ///
    /// # Panics
    /// If a tool fails.
    #[must_use]
    pub fn grown(seed: u64) -> Self {
        let folder = Folder::new();
        // QEMU is somebody else, who finds its own images below.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a mode");
        let (whole, odd) = images::plant(&folder, &mut Dice::new(seed));
        std::fs::create_dir(folder.file("folder")).expect("a folder");
        std::fs::create_dir(folder.file("pool")).expect("a folder");
        for volume in elements::VOLUMES {
            let copy = folder.file("pool").join(volume.0);
            std::fs::copy(folder.file(volume.0), copy).expect("a copy");
        }
        folder.img("create -q -f raw served 1M");
        folder.img("create -q -f raw loop0 1M");
        folder.img("create -q -f qcow2 loop1 1M");
        folder.run("truncate", &["-s", "2M", "loop1"]);
        let loops = ["loop0", "loop1"].map(|name| LoopDevice::over(&folder.file(name)));
        let server = Server::of(&folder.file("served"), &folder.file("nbd.sock"));
        let mut forest = Self {
            seed,
            folder,
            whole,
            odd,
            loops: loops.into(),
            server,
        };
        forest.over_the_rest();
        forest
    }

    /// Chains with a layer that is no file.
    fn over_the_rest(&mut self) {
        let folder = &self.folder;
        let block = |device: &LoopDevice, format| Layer {
            path: device.path.clone(),
            format,
            block: true,
            luks: false,
            store: None,
        };
        let (plain, qcow2) = (block(&self.loops[0], "raw"), block(&self.loops[1], "qcow2"));
        images::overlay(folder, "over-loop", &plain.path, "raw");
        self.whole
            .push(vec![images::file(folder, "over-loop", "qcow2"), plain.clone()]);
        self.whole.push(vec![plain]);
        self.whole.push(vec![qcow2]);
        let served = format!("nbd+unix:///disk?socket={}", self.server.socket);
        images::overlay(folder, "over-nbd", &served, "raw");
        self.odd.push(images::file(folder, "over-nbd", "qcow2"));
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives libvirt what these guests need: secrets, and the pool.
    pub fn introduce(&self, daemon: &Daemon) {
        daemon.keep(PASSPHRASE, "volume", "<volume>mine</volume>", "secret");
        let [(ceph, of_ceph), (iscsi, of_iscsi)] = KEYS;
        daemon.keep(
            "22222222-2222-3333-4444-555555555555",
            ceph,
            &format!("<name>{of_ceph}</name>"),
            "key",
        );
        daemon.keep(
            "33333333-2222-3333-4444-555555555555",
            iscsi,
            &format!("<target>{of_iscsi}</target>"),
            "word",
        );
        daemon.pool(&self.pool(), &self.folder.file("pool"));
    }

    /// The name of the pool that has some images.
    fn pool(&self) -> String {
        format!("images{}", self.seed)
    }

    /// Every file and device that disks are on.
    pub fn files(&self) -> Vec<PathBuf> {
        let folders = [".", "sub", "pool"].map(|name| self.folder.file(name));
        let entries = folders
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).expect("the folder"));
        let files = entries
            .map(|entry| entry.expect("its entry"))
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .map(|entry| entry.path().canonicalize().expect("it is there"));
        files
            .chain(self.loops.iter().map(|device| PathBuf::from(&device.path)))
            .collect()
    }

    /// Gives everything to the user and group 0, and lets everybody else read and write it, or nobody.
    ///
    /// # Panics
    /// If that is not allowed.
    pub fn belongs_to_root(&self, private: bool) {
        let mode = if private { 0o600 } else { 0o666 };
        for path in self.files() {
            chown(&path, Some(0), Some(0)).expect("an owner");
            // Modes of devices are the machine's.
            if !path.starts_with("/dev") {
                std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
            }
        }
    }

    /// The guest of a number, with so many disks; with fewer where one of them is odd.
    #[must_use]
    pub fn guest(&self, seed: u64, disks: Range<u64>) -> Guest {
        let mut dice = Dice::new(seed);
        let mut targets = elements::Targets::default();
        let mut guest = Guest::default();
        // What is odd would hide what is wrong with the rest, and servers that are not there hide what QEMU does not open.
        let odd = dice.chance(20);
        let count = if odd {
            dice.within(1..3)
        } else {
            dice.within(disks)
        };
        for number in 0..count {
            let disk = elements::disk(self, &mut dice, &mut targets, odd, number == 0);
            guest.devices.push_str(&disk);
        }
        if guest.devices.contains("<throttlefilter ") {
            guest.domain.push_str(elements::THROTTLE_GROUPS);
        }
        guest.groups = targets.groups;
        guest.domain.push_str(match dice.below(12) {
            // QEMU then runs as somebody else, who has the images.
            0 => "<seclabel type='static' model='dac' relabel='yes'><label>+31000:+32000</label></seclabel>",
            1 => "<seclabel type='dynamic' model='dac'/>",
            _ => "",
        });
        guest
    }

    /// The guest of a number, whose XML leaves nothing to be looked for.
    #[must_use]
    pub fn closed(&self, seed: u64) -> Guest {
        let mut dice = Dice::new(seed);
        let mut targets = elements::Targets::default();
        let mut guest = Guest::default();
        for _ in 0..dice.within(3..8) {
            let disk = elements::closed(self, &mut dice, &mut targets);
            guest.devices.push_str(&disk);
        }
        if guest.devices.contains("<throttlefilter ") {
            guest.domain.push_str(elements::THROTTLE_GROUPS);
        }
        if guest.devices.contains("'vhostuser'") {
            guest
                .domain
                .push_str("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>");
        }
        guest
    }

    /// Guests with one disk each, over what is odd.
    #[must_use]
    pub fn oddities(&self) -> Vec<Guest> {
        let disk = |top: &Layer, policy: &str, below: &str| {
            Guest::with(format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{}'/><source file='{}'{policy}/>{below}\
                 <target dev='vda' bus='virtio'/></disk>",
                top.format, top.path
            ))
        };
        let mut guests = vec![disk(
            &self.whole[1][0],
            "",
            "<backingStore type='file'><format type='qcow2'/><source file='/nowhere'/><backingStore/></backingStore>",
        )];
        guests.extend(self.odd.iter().map(|top| {
            // What is not there need not be, if XML says so.
            let absent = top.path.ends_with("/absent");
            disk(top, if absent { " startupPolicy='optional'" } else { "" }, "")
        }));
        guests
    }

    /// A chain of so many layers, the active one first.
    #[must_use]
    pub fn tower(&self, height: usize) -> Vec<Layer> {
        let mut tower = vec![images::file(&self.folder, "qcow2.base", "qcow2")];
        for number in 2..=height {
            let name = format!("tower{number}");
            images::overlay(&self.folder, &name, &tower[0].path, "qcow2");
            tower.insert(0, images::file(&self.folder, &name, "qcow2"));
        }
        tower
    }
}
