//! libvirt's own answers: to "what is the chain of this disk?", to "what does QEMU get for it?", and to "what is this image?".
//!
//! libvirt detects a chain when it starts a guest. So a guest is defined over the image, started without running (in
//! QEMU's emulator, so that no KVM is needed), asked for its live XML, and ended. libvirt is the real `libvirtd`, in a mount
//! namespace of its own, where the folders in which it keeps its state are others: it meets no libvirt of the machine's
//! and no other test's, and ends when the test is killed.
//!
//! QEMU is the real one as well, but what is on other hosts it does not look for: such a guest starts, and libvirt shows
//! it, as if the servers were there.
//!
//! ```no_run
//! # let image = std::path::Path::new("");
//! let libvirt = catena_testkit::libvirt::Daemon::start()?;
//! match libvirt.detect(image, "qcow2") {
//!     Ok(disk) => assert!(disk.contains("<backingStore")),
//!     Err(said) => assert!(said.contains("format of backing image")),
//! }
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions};
use tempfile::TempDir;

/// No security labels, no control groups.
const CONFIGURATION: &str = r#"
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
seccomp_sandbox = 0
"#;
/// A user and group that nobody is, and that may not use KVM.
pub const NOBODY: u32 = 54_321;
const KVM: &str = "/dev/kvm";
/// Where [`QEMU`] is for libvirt: one place, so that libvirt knows it again.
const EMULATOR: &str = "/run/libvirt/emulator";
/// libvirtd with the folders of its state where `$1` says, `$2` as the emulator, and KVM's place taken by `$3`, if that
/// is there.
const LIBVIRTD: &str = "
for folder in etc run var/lib var/cache var/log; do
    mkdir -p /$folder/libvirt
    mount --bind $1/${folder#var/} /$folder/libvirt
done
touch /run/libvirt/emulator
mount --bind $2 /run/libvirt/emulator
if [ -n \"$3\" ]; then
    mount --bind $3 /dev/kvm
fi
exec libvirtd --pid-file $1/pid
";
/// QEMU. Where a node of the guest is on another host, none of its images is opened: each is a disk of zeros by the name
/// that libvirt gave it, and what would be asked of servers beside is not.
const QEMU: &str = r#"#!/bin/sh
remote=
for argument; do
    case $argument in
    '{"driver":"nbd","server":{"type":"inet"'*) remote=1 ;;
    '{"driver":"rbd"'* | '{"driver":"iscsi"'* | '{"driver":"http'* | '{"driver":"ftp'* | '{"driver":"ssh"'*) remote=1 ;;
    '{"driver":"gluster"'* | '{"driver":"nfs"'* | '{"driver":"vxhs"'* | '{"driver":"nvme"'*) remote=1 ;;
    *'"driver":"scsi-block"'*) remote=1 ;;
    esac
done
if [ "$remote" ]; then
    for argument; do
        shift
        case $argument in
        *'"node-name":"libvirt-CoR-'* | *'"driver":"throttle"'*) ;;
        '{'*'"node-name":"'*)
            name=${argument#*'"node-name":"'}
            case $argument in *'"read-only":true'*) readonly=true ;; *) readonly=false ;; esac
            argument="{\"driver\":\"null-co\",\"size\":1048576,\"node-name\":\"${name%%\"*}\",\"read-only\":$readonly}" ;;
        '{"qom-type":"tls-creds'* | '{"qom-type":"pr-manager'*)
            id=${argument#*'"id":"'}
            argument="{\"qom-type\":\"secret\",\"id\":\"${id%%\"*}\",\"data\":\"\"}" ;;
        *'"driver":"scsi-block"'*)
            argument="${argument%%scsi-block*}scsi-hd${argument#*scsi-block}" ;;
        esac
        set -- "$@" "$argument"
    done
fi
exec /usr/bin/qemu-system-x86_64 "$@"
"#;
/// The number of the first file that is handed over.
const FIRST_DESCRIPTOR: u32 = 3;
/// A guest starts within a second; with several tests at once on a slow machine, within some.
const PATIENCE: Duration = Duration::from_secs(120);

/// libvirt with a state of its own, which goes with it. Any number of them may be used at once, and each by several threads.
#[derive(Debug)]
pub struct Daemon {
    root: TempDir,
    /// Waits for libvirtd, which ends when this thread does.
    process: Option<(Pid, JoinHandle<()>)>,
    /// How many guests and calls there were, whose names are so their own.
    count: AtomicU64,
}

/// A guest of so little that only its disks matter.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// `<disk>` elements, and any other devices.
    pub devices: String,
    /// What else a domain needs for them: `<throttlegroups>`.
    pub domain: String,
    /// Files that libvirt is handed open, by the names of their groups.
    pub groups: Vec<(String, PathBuf)>,
}

impl Guest {
    /// With those devices.
    pub fn with(devices: impl Into<String>) -> Self {
        Self {
            devices: devices.into(),
            ..Self::default()
        }
    }
}

/// What came of a guest that was to be started.
#[derive(Clone, Debug)]
pub struct Started {
    /// Its live XML; or what libvirt said when it refused, one error a line.
    pub xml: Result<String, String>,
    /// What libvirt gave QEMU, as far as it came.
    pub arguments: Arguments,
}

/// What libvirt gives QEMU, each option with its value.
#[derive(Clone, Debug, Default)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// The values of an option such as `-blockdev`.
    pub fn values(&self, option: &str) -> Vec<String> {
        let given = self.0.iter().filter_map(|line| {
            let value = line.strip_prefix(option)?.strip_prefix(' ')?;
            let quoted = value
                .strip_prefix('\'')
                .and_then(|value| value.strip_suffix('\''));
            Some(quoted.map_or_else(|| value.to_owned(), |value| value.replace("'\\''", "'")))
        });
        given.collect()
    }
}

/// What guests are run with, made where it is not.
fn emulator(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("emulator");
    // libvirt asks anew what a program can do whenever it changes.
    if std::fs::read_to_string(&path).ok().as_deref() != Some(QEMU) {
        let new = folder.join("emulator.new");
        std::fs::write(&new, QEMU)?;
        std::fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        std::fs::rename(&new, &path)?;
    }
    Ok(path)
}

/// libvirt lets QEMU try KVM as root, finds later that its user may not, and asks anew each time. So this is there instead.
fn closed(folder: &Path) -> Result<Option<PathBuf>> {
    if !Path::new(KVM).exists() {
        return Ok(None);
    }
    let path = folder.join("kvm");
    if !path.exists() {
        File::create(&path)?.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(Some(path))
}

impl Daemon {
    /// Starts it. The first time on a machine, libvirt also gets to know its QEMU, which takes some seconds.
    ///
    /// Images keep their owners: what libvirt says is about the chain alone.
    ///
    /// # Errors
    /// If libvirt is not there or does not start.
    pub fn start() -> Result<Self> {
        Self::configured("libvirt", 0, "dynamic_ownership = 0")
    }

    /// As [`Daemon::start`], where QEMU runs as the user and group [`NOBODY`], and is given the images.
    ///
    /// # Errors
    /// If libvirt is not there or does not start.
    pub fn start_unprivileged() -> Result<Self> {
        Self::configured("libvirt-nobody", NOBODY, "dynamic_ownership = 1")
    }

    /// What QEMU can do depends on its user, so the cache does, too.
    fn configured(name: &str, user: u32, owners: &str) -> Result<Self> {
        // The names of sockets in it must stay short.
        let root = tempfile::Builder::new().prefix("lv").tempdir_in("/tmp")?;
        // QEMU's user finds its own folders below.
        std::fs::set_permissions(root.path(), Permissions::from_mode(0o711))?;
        for folder in ["etc", "run", "lib", "log"] {
            std::fs::create_dir(root.path().join(folder))?;
        }
        std::fs::write(
            root.path().join("etc/qemu.conf"),
            format!("user = \"+{user}\"\ngroup = \"+{user}\"\n{owners}\n{CONFIGURATION}"),
        )?;
        std::fs::write(root.path().join("etc/libvirtd.conf"), "auth_unix_rw = \"none\"\n")?;
        let cache = crate::cache_dir()?.join(name);
        std::fs::create_dir_all(&cache)?;
        std::os::unix::fs::symlink(&cache, root.path().join("cache"))?;
        // One at a time, for the others find in the cache what the first was told.
        let lock = File::create(cache.join("lock"))?;
        lock.lock()?;
        let emulator = emulator(&cache)?;
        let closed = if user == 0 { None } else { closed(&cache)? };
        let mut daemon = Self {
            process: None,
            root,
            count: AtomicU64::new(0),
        };
        daemon.process = Some(daemon.spawn(&emulator, closed.as_deref())?);
        daemon.wait()?;
        daemon
            .virsh(&format!(
                "domcapabilities --virttype qemu --emulatorbin {EMULATOR}; capabilities"
            ))?
            .map_err(|said| anyhow::anyhow!("libvirt finds no QEMU: {said}"))?;
        // Some calls ask for all QEMUs that there are, so libvirt knows those from here on, too.
        //
        // QEMU puts itself in the background. Where the machine's first process is slow to bury the dead, libvirt waits
        // for it after every guest; so from here on that is done by this process. Not before: it could not know which
        // QEMUs libvirt starts to ask what they can do.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(daemon)
    }

    /// Starts libvirtd. The kernel ends it when the thread that started it ends, so it has one of its own.
    fn spawn(&self, emulator: &Path, closed: Option<&Path>) -> Result<(Pid, JoinHandle<()>)> {
        let log = File::create(self.root.path().join("libvirtd.log"))?;
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--propagation",
                "private",
            ])
            .args(["sh", "-e", "-c", LIBVIRTD, "sh"])
            .arg(self.root.path())
            .arg(emulator)
            .args(closed)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let (started, come) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut process = match command.spawn() {
                Ok(process) => process,
                Err(error) => return drop(started.send(Err(error))),
            };
            started.send(Ok(Pid::from_child(&process))).ok();
            process.wait().ok();
        });
        Ok((come.recv()?.context("setpriv")?, thread))
    }

    /// Waits until it answers.
    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while UnixStream::connect(self.root.path().join("run/libvirt-sock")).is_err() {
            let ended = self
                .process
                .as_ref()
                .is_none_or(|(_, thread)| thread.is_finished());
            if ended || start.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.root.path().join("libvirtd.log"))?;
                bail!("libvirtd does not start: {log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Under which virsh and others find it.
    pub fn uri(&self) -> String {
        format!(
            "qemu+unix:///system?socket={}/run/libvirt-sock",
            self.root.path().display()
        )
    }

    /// Starts a guest with one disk, `image` in `format`, and gives its `<disk>` element as libvirt then has it, with
    /// the chain as nested `<backingStore>` elements; or what libvirt said when it refused.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    ///
    /// # Errors
    /// What `virsh` said, one error a line.
    pub fn detect(&self, image: &Path, format: &str) -> Result<String, String> {
        let image = image.canonicalize().expect("the image exists");
        let source = image.to_str().expect("the image's name is UTF-8");
        self.detect_disk(&format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/></disk>",
            source
                .replace('&', "&amp;")
                .replace('\'', "&apos;")
                .replace('<', "&lt;")
        ))
    }

    /// As [`Daemon::detect`], with the `<disk>` element as the caller writes it: it may spell out the chain.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    ///
    /// # Errors
    /// What `virsh` said, one error a line.
    pub fn detect_disk(&self, disk: &str) -> Result<String, String> {
        let (started, _) = self.run(&Guest::with(disk), || ());
        started.xml.map(|xml| disk_of(&xml).to_owned())
    }

    /// Starts a guest, calls `look` while it is there, and ends it again.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    pub fn run<T>(&self, guest: &Guest, look: impl FnOnce() -> T) -> (Started, Option<T>) {
        let (name, file) = self.write(guest);
        let (first, last) = if guest.groups.is_empty() {
            (format!("create --paused {file}"), String::new())
        } else {
            // Files are handed over before the guest starts, so it must be known by then.
            let groups: String = (guest.groups.iter().zip(FIRST_DESCRIPTOR..))
                .map(|((group, _), number)| format!("dom-fd-associate {name} {group} {number}; "))
                .collect();
            (
                format!("define {file}; {groups}start --paused {name}"),
                format!("; undefine {name}"),
            )
        };
        let (_, said, errors) = self
            .run_virsh(&format!("{first}; dumpxml {name}"), &guest.groups)
            .expect("virsh runs");
        // If it did not start, the rest failed as well, and only the first error tells. QEMU's words follow it.
        let errors: Vec<_> = errors
            .lines()
            .map(|line| line.strip_prefix("error: ").unwrap_or(line))
            .take_while(|line| !line.contains(&format!("failed to get domain '{name}'")))
            .filter(|line| !line.is_empty())
            .collect();
        let seen = errors.is_empty().then(look);
        if seen.is_some() || !last.is_empty() {
            self.virsh(&format!("destroy {name}{last}"))
                .expect("virsh runs")
                .ok();
        }
        let log = self.root.path().join(format!("log/qemu/{name}.log"));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let arguments = log
            .lines()
            .map(|line| line.trim().trim_end_matches('\\').trim().to_owned());
        let started = Started {
            xml: if errors.is_empty() {
                Ok(said)
            } else {
                Err(errors.join("\n"))
            },
            arguments: Arguments(arguments.collect()),
        };
        (started, seen)
    }

    /// What libvirt would give QEMU for each of these guests, which it does not start; or what it said when it refused.
    /// It looks at no image: the chains are what their XML gives.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    pub fn translate(&self, guests: &[Guest]) -> Vec<Result<Arguments, String>> {
        let mut commands = String::new();
        let mut names = Vec::new();
        for guest in guests {
            let (name, file) = self.write(guest);
            commands.push_str(&format!(
                "echo --err @{name}@; echo @{name}@; domxml-to-native qemu-argv --xml {file}; "
            ));
            names.push(name);
        }
        let (_, said, errors) = self.run_virsh(&commands, &[]).expect("virsh runs");
        let translated = names.iter().map(|name| {
            let mark = format!("@{name}@");
            let errors: Vec<_> = lines(between(&errors, &mark)).collect();
            if errors.is_empty() {
                Ok(Arguments(options(between(&said, &mark))))
            } else {
                Err(errors.join("\n"))
            }
        });
        translated.collect()
    }

    /// Defines a guest with each of these `<disk>` elements, and gives the element as libvirt then has it for the next
    /// start; or what libvirt said when it refused. Nothing is started and no image looked at.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    pub fn judge(&self, disks: &[String]) -> Vec<Result<String, String>> {
        let mut commands = String::new();
        let mut names = Vec::new();
        for disk in disks {
            let (name, file) = self.write(&Guest::with(disk.as_str()));
            commands.push_str(&format!(
                "echo --err @{name}@; echo @{name}@; define {file}; dumpxml {name}; undefine {name}; "
            ));
            names.push(name);
        }
        let (_, said, errors) = self.run_virsh(&commands, &[]).expect("virsh runs");
        let verdicts = names.iter().map(|name| {
            let mark = format!("@{name}@");
            let error = lines(between(&errors, &mark))
                .find(|line| !line.is_empty() && !line.starts_with("Failed to define domain"));
            match error {
                Some(error) => Err(error.to_owned()),
                None => Ok(disk_of(between(&said, &mark)).to_owned()),
            }
        });
        verdicts.collect()
    }

    /// Starts a guest with these devices, and with these elements of the domain beside them, calls `look` while it is
    /// there, and ends it; or gives what libvirt said when it refused.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    ///
    /// # Errors
    /// What `virsh` said, one error a line.
    pub fn running<T>(&self, devices: &str, beside: &str, look: impl FnOnce() -> T) -> Result<T, String> {
        let guest = Guest {
            domain: beside.to_owned(),
            ..Guest::with(devices)
        };
        let (started, seen) = self.run(&guest, look);
        seen.ok_or_else(|| started.xml.err().unwrap_or_default())
    }

    /// Defines a guest of that name, which stays.
    ///
    /// # Panics
    /// If libvirt cannot be asked, or refuses.
    pub fn define(&self, name: &str, guest: &Guest) {
        let file = self.file(&Self::domain(name, guest));
        self.virsh(&format!("define {file}"))
            .expect("virsh runs")
            .expect("libvirt takes the guest");
    }

    /// Gives it a secret to keep. `usage` is what stands in its `<usage>`.
    ///
    /// # Panics
    /// If libvirt cannot be asked, or refuses.
    pub fn keep(&self, uuid: &str, kind: &str, usage: &str, value: &str) {
        let definition = self.file(&format!(
            "<secret private='no'><uuid>{uuid}</uuid><usage type='{kind}'>{usage}</usage></secret>"
        ));
        let value = self.file(value);
        self.virsh(&format!(
            "secret-define {definition}; secret-set-value {uuid} --plain --file {value}"
        ))
        .expect("virsh runs")
        .expect("libvirt takes the secret");
    }

    /// Makes a folder a storage pool, with the images in it as its volumes.
    ///
    /// # Panics
    /// If libvirt cannot be asked, or refuses.
    pub fn pool(&self, name: &str, folder: &Path) {
        let folder = folder.display();
        self.virsh(&format!(
            "pool-define-as {name} dir --target {folder}; pool-start {name}"
        ))
        .expect("virsh runs")
        .expect("libvirt takes the pool");
    }

    /// The `<volume>` of each file of a folder as a storage pool has it, by its name; or what libvirt said instead.
    ///
    /// # Panics
    /// If libvirt cannot be asked, or takes no pool there.
    pub fn volumes(&self, folder: &Path) -> BTreeMap<String, Result<String, String>> {
        let pool = format!("pool{}", self.number());
        self.pool(&pool, folder);
        let mut commands = String::new();
        let mut marks = BTreeMap::new();
        for file in std::fs::read_dir(folder).expect("the folder is there") {
            let name = file.expect("the folder can be read").file_name();
            let name = name.to_str().expect("the file's name is UTF-8").to_owned();
            let mark = format!("@guest{}@", self.number());
            let quoted = name.replace('\\', "\\\\").replace('"', "\\\"");
            commands.push_str(&format!(
                "echo --err {mark}; echo {mark}; vol-dumpxml --pool {pool} --vol \"{quoted}\"; "
            ));
            marks.insert(name, mark);
        }
        let (_, said, errors) = self.run_virsh(&commands, &[]).expect("virsh runs");
        self.virsh(&format!("pool-destroy {pool}; pool-undefine {pool}"))
            .expect("virsh runs")
            .expect("the pool is there");
        let volumes = marks.into_iter().map(|(name, mark)| {
            let error: Vec<_> = lines(between(&errors, &mark))
                .filter(|line| !line.is_empty())
                .collect();
            let volume = match error.as_slice() {
                [] => Ok(between(&said, &mark).to_owned()),
                errors => Err(errors.join("\n")),
            };
            (name, volume)
        });
        volumes.collect()
    }

    /// Runs `virsh` with these commands, separated by `;`: what it wrote, or its errors.
    ///
    /// # Errors
    /// If it cannot be run, or does not end.
    pub fn virsh(&self, commands: &str) -> Result<Result<String, String>> {
        let (succeeded, output, said) = self.run_virsh(commands, &[])?;
        let errors: Vec<_> = lines(&said).collect();
        if succeeded && errors.is_empty() {
            return Ok(Ok(output));
        }
        Ok(Err(if errors.is_empty() {
            said
        } else {
            errors.join("\n")
        }))
    }

    /// A number nobody else has.
    fn number(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// Where that text can be read.
    fn file(&self, text: &str) -> String {
        let path = self.root.path().join(format!("{}.xml", self.number()));
        std::fs::write(&path, text).expect("the temporary folder takes a small file");
        path.display().to_string()
    }

    /// The name of a guest, and the file that defines it.
    fn write(&self, guest: &Guest) -> (String, String) {
        let name = format!("guest{}", self.number());
        let file = self.file(&Self::domain(&name, guest));
        (name, file)
    }

    fn domain(name: &str, guest: &Guest) -> String {
        let Guest { devices, domain, .. } = guest;
        format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>{domain}\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <devices><emulator>{EMULATOR}</emulator>{devices}\
             <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        )
    }

    /// Runs `virsh` with these commands, and these files open: whether the last succeeded, what it wrote, and what it said
    /// of errors.
    fn run_virsh(&self, commands: &str, open: &[(String, PathBuf)]) -> Result<(bool, String, String)> {
        let number = self.number();
        let file = |name: &str| self.root.path().join(format!("{number}.{name}"));
        let (stdout, stderr) = (file("out"), file("err"));
        // A shell is asked to open them, for this program's own files are closed when it starts another.
        let redirections = (FIRST_DESCRIPTOR..).zip(open).map(|(number, _)| {
            let argument = number - FIRST_DESCRIPTOR + 1;
            format!(" {number}<>\"${{{argument}}}\"")
        });
        let shell = format!(
            "exec{}; exec virsh --quiet --connect \"$URI\" \"$COMMANDS\"",
            redirections.collect::<String>()
        );
        let mut virsh = Command::new("sh")
            .args(["-c", &shell, "sh"])
            .args(open.iter().map(|(_, path)| path))
            .env("URI", self.uri())
            .env("COMMANDS", commands)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .env("LC_ALL", "C")
            .spawn()
            .context("virsh")?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = virsh.try_wait()? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                virsh.kill()?;
                virsh.wait()?;
                bail!("virsh did not end: {commands}");
            }
            self.bury();
            std::thread::sleep(Duration::from_millis(3));
        };
        self.bury();
        let read = |path: &Path| -> Result<String> {
            Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
        };
        Ok((status.success(), read(&stdout)?, read(&stderr)?))
    }

    /// The guests that are there.
    fn qemus(&self) -> Vec<Pid> {
        let Ok(files) = std::fs::read_dir(self.root.path().join("run/qemu")) else {
            return Vec::new();
        };
        let pids = files.flatten().filter_map(|file| {
            let path = file.path();
            if path.extension()? != "pid" {
                return None;
            }
            let text = std::fs::read_to_string(path).ok()?;
            Pid::from_raw(text.trim().parse().ok()?)
        });
        pids.collect()
    }

    /// Waits for those of them that ended.
    fn bury(&self) {
        for qemu in self.qemus() {
            // It may not be ours yet, or no longer there.
            rustix::process::waitpid(Some(qemu), WaitOptions::NOHANG).ok();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let guests = self.qemus();
        if let Some((process, thread)) = self.process.take() {
            rustix::process::kill_process(process, Signal::KILL).ok();
            thread.join().ok();
        }
        for qemu in guests {
            rustix::process::kill_process(qemu, Signal::KILL).ok();
            rustix::process::waitpid(Some(qemu), WaitOptions::empty()).ok();
        }
    }
}

/// What follows a mark, up to the next.
fn between<'a>(text: &'a str, mark: &str) -> &'a str {
    let Some((_, rest)) = text.split_once(mark) else {
        panic!("virsh did not come so far: {text}");
    };
    let part = rest.find("@guest").map_or(rest, |next| &rest[..next]);
    part.strip_suffix("error: ").unwrap_or(part)
}

/// The words of a shell's command line, each option on a line with its value.
fn options(line: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (mut quoted, mut escaped) = (false, false);
        let end = rest
            .find(|sign| {
                quoted ^= sign == '\'' && !escaped;
                escaped = sign == '\\' && !quoted;
                sign == ' ' && !quoted
            })
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        match options.last_mut() {
            Some(option) if !word.starts_with('-') => {
                option.push(' ');
                option.push_str(word);
            }
            _ => options.push(word.to_owned()),
        }
        rest = after.trim_start();
    }
    options
}

/// The errors among what virsh said.
fn lines(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.strip_prefix("error: "))
}

fn disk_of(xml: &str) -> &str {
    let from = xml.find("<disk ").expect("the guest has a disk");
    let to = xml.find("</disk>").expect("the disk ends") + "</disk>".len();
    &xml[from..to]
}
