//! libvirt's own answer to "what is the chain of this disk?".
//!
//! libvirt detects a chain when it starts a guest. So a guest is defined over the image, started without running (in
//! QEMU's emulator, so that no KVM is needed), asked for its live XML, and ended. libvirt's QEMU driver is the real one,
//! but runs within `virsh` instead of a daemon (`qemu:///embed`): with a folder of its own for all its state, it meets no
//! libvirt of the machine's and no other test's, and nothing stays when a test is killed.
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

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
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
const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";
/// The one guest of each [`Daemon`].
const GUEST: &str = "guest";
/// A guest starts within a second; with several tests at once on a slow machine, within some.
const PATIENCE: Duration = Duration::from_secs(120);

/// libvirt's QEMU driver with a state of its own, which goes with it. Any number of them may be used at once.
#[derive(Debug)]
pub struct Daemon {
    root: TempDir,
    /// One process at a time may use the folder.
    turn: Mutex<()>,
    /// What is in KVM's place where nobody shall have it.
    closed: Option<std::path::PathBuf>,
}

impl Daemon {
    /// Makes the folder. The first time on a machine, libvirt also gets to know its QEMU, which takes some seconds.
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
        let root = tempfile::Builder::new().prefix("lv").tempdir()?;
        // QEMU's user finds its own folders below.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711))?;
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc)?;
        std::fs::write(
            etc.join("qemu.conf"),
            format!("user = \"+{user}\"\ngroup = \"+{user}\"\n{owners}\n{CONFIGURATION}"),
        )?;
        let cache = crate::cache_dir()?.join(name);
        std::fs::create_dir_all(&cache)?;
        std::os::unix::fs::symlink(&cache, root.path().join("cache"))?;
        let daemon = Self {
            // libvirt lets QEMU try KVM as root, finds later that its user may not, and asks anew each time.
            closed: (user != 0 && Path::new(KVM).exists()).then(|| cache.join("kvm")),
            root,
            turn: Mutex::new(()),
        };
        if let Some(closed) = &daemon.closed
            && !closed.exists()
        {
            File::create(closed)?.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        }
        // One at a time, for the others find in the cache what the first was told.
        let lock = File::create(cache.join("lock"))?;
        lock.lock()?;
        daemon
            .virsh(&format!(
                "domcapabilities --virttype qemu --emulatorbin {EMULATOR}"
            ))?
            .map_err(|said| anyhow::anyhow!("libvirt finds no QEMU: {said}"))?;
        // QEMU puts itself in the background. Where the machine's first process is slow to bury the dead, libvirt waits
        // for it after every guest; so from here on that is done by this process. Not before: it could not know which
        // QEMUs libvirt starts to ask what they can do.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(daemon)
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
        let definition = self.root.path().join("guest.xml");
        let turn = self
            .turn
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::fs::write(&definition, domain(GUEST, disk)).expect("the temporary folder takes a small file");
        // If it does not start, the two that follow fail as well, and only the first error tells.
        let commands = format!(
            "create --paused {}; dumpxml {GUEST}; destroy {GUEST}",
            definition.display()
        );
        let said = self.virsh(&commands).expect("virsh runs");
        drop(turn);
        let xml = said.map_err(|errors| {
            let started = errors
                .lines()
                .take_while(|line| !line.contains(&format!("failed to get domain '{GUEST}'")));
            started.collect::<Vec<_>>().join("\n")
        })?;
        Ok(disk_of(&xml).to_owned())
    }

    /// Defines a guest with each of these `<disk>` elements, and gives the element as libvirt then has it for the next
    /// start; or what libvirt said when it refused. Nothing is started and no image looked at.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    pub fn judge(&self, disks: &[String]) -> Vec<Result<String, String>> {
        let mut commands = String::new();
        let turn = self
            .turn
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (number, disk) in disks.iter().enumerate() {
            let definition = self.root.path().join(format!("{number}.xml"));
            std::fs::write(&definition, domain(&format!("{GUEST}{number}"), disk))
                .expect("the temporary folder takes a small file");
            commands.push_str(&format!(
                "echo --err @{number}@; define {}; dumpxml {GUEST}{number}; undefine {GUEST}{number}; ",
                definition.display()
            ));
        }
        let (_, said, errors) = self.run_virsh(&commands).expect("virsh runs");
        drop(turn);
        let mut verdicts = Vec::new();
        for (number, disk) in disks.iter().enumerate() {
            let from = errors.find(&format!("@{number}@\n")).expect("virsh came so far");
            let to = errors
                .find(&format!("@{}@\n", number + 1))
                .unwrap_or(errors.len());
            let error = errors[from..to]
                .lines()
                .filter_map(|line| line.strip_prefix("error: "))
                .find(|line| !line.is_empty() && !line.starts_with("Failed to define domain"));
            let start = said.find(&format!("<name>{GUEST}{number}</name>"));
            verdicts.push(match (error, start.and_then(|start| said.get(start..))) {
                (Some(error), _) => Err(error.to_owned()),
                (None, Some(xml)) => Ok(disk_of(xml).to_owned()),
                (None, None) => panic!("libvirt neither took nor refused {disk}"),
            });
        }
        verdicts
    }

    /// Defines a guest of that name with one `<disk>` element, which stays; gives the URI under which virsh finds it.
    ///
    /// # Panics
    /// If libvirt cannot be asked, or refuses.
    pub fn define(&self, name: &str, disk: &str) -> String {
        let definition = self.root.path().join("defined.xml");
        std::fs::write(&definition, domain(name, disk)).expect("the temporary folder takes a small file");
        self.virsh(&format!("define {}", definition.display()))
            .expect("virsh runs")
            .expect("libvirt takes the guest");
        self.uri()
    }

    fn uri(&self) -> String {
        format!("qemu:///embed?root={}", self.root.path().display())
    }

    /// As [`Daemon::detect_disk`], and also the arguments that libvirt gave QEMU, one a line.
    ///
    /// # Panics
    /// If libvirt cannot be asked at all.
    ///
    /// # Errors
    /// What `virsh` said, one error a line.
    pub fn arguments(&self, disk: &str) -> Result<(String, Vec<String>), String> {
        let log = self.root.path().join(format!("log/qemu/{GUEST}.log"));
        let before = std::fs::read_to_string(&log).map_or(0, |text| text.len());
        let xml = self.detect_disk(disk)?;
        let text = std::fs::read_to_string(&log).expect("libvirt logs what it starts");
        let arguments = text.get(before..).unwrap_or(&text);
        let lines = arguments
            .lines()
            .map(|line| line.trim().trim_end_matches('\\').trim().to_owned());
        Ok((xml, lines.collect()))
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
        const HERE: &str = "@here@";
        let definition = self.root.path().join("guest.xml");
        let text = domain(GUEST, devices).replace("</domain>", &format!("{beside}</domain>"));
        let turn = self
            .turn
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        std::fs::write(&definition, text).expect("the temporary folder takes a small file");
        let mut virsh = self.spawn(&[], Stdio::piped()).expect("virsh runs");
        let mut commands = virsh.stdin.take().expect("it is a pipe");
        writeln!(
            commands,
            "create --paused {}; echo --err {HERE}",
            definition.display()
        )
        .expect("virsh listens");
        let said = || std::fs::read_to_string(self.root.path().join("stderr")).unwrap_or_default();
        self.wait(&mut virsh, |_| Ok(said().contains(HERE).then_some(())))
            .expect("libvirt answers");
        let refused = errors(&said().replace(&format!("error: {HERE}"), ""));
        let answer = if refused.is_empty() {
            let seen = look();
            writeln!(commands, "destroy {GUEST}").expect("virsh listens");
            Ok(seen)
        } else {
            Err(refused)
        };
        drop(commands);
        self.wait_for_end(&mut virsh).expect("virsh ends");
        drop(turn);
        answer
    }

    /// Runs `virsh` with these commands: what it wrote, or its errors.
    fn virsh(&self, commands: &str) -> Result<Result<String, String>> {
        let (succeeded, output, said) = self.run_virsh(commands)?;
        let errors = errors(&said);
        if succeeded && errors.is_empty() {
            return Ok(Ok(output));
        }
        Ok(Err(if errors.is_empty() { said } else { errors }))
    }

    /// Runs `virsh` with these commands: whether the last succeeded, what it wrote, and what it said of errors.
    fn run_virsh(&self, commands: &str) -> Result<(bool, String, String)> {
        let mut virsh = self.spawn(&[commands], Stdio::null())?;
        let succeeded = self.wait_for_end(&mut virsh)?;
        let read = |name: &str| -> Result<String> {
            Ok(String::from_utf8_lossy(&std::fs::read(self.root.path().join(name))?).into_owned())
        };
        Ok((succeeded, read("stdout")?, read("stderr")?))
    }

    /// Starts `virsh`, which writes into files beside libvirt's state.
    fn spawn(&self, commands: &[&str], stdin: Stdio) -> Result<Child> {
        let root = self.root.path();
        let mut command = match &self.closed {
            None => Command::new("virsh"),
            Some(closed) => {
                let script = format!("mount --bind \"$0\" {KVM} && exec virsh \"$@\"");
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", &script]).arg(closed);
                command
            }
        };
        command
            .args(["--quiet", "--connect", &self.uri()])
            .args(commands)
            .stdin(stdin)
            .stdout(File::create(root.join("stdout"))?)
            .stderr(File::create(root.join("stderr"))?)
            .env("LC_ALL", "C")
            .spawn()
            .context("virsh")
    }

    /// Whether it succeeded.
    fn wait_for_end(&self, virsh: &mut Child) -> Result<bool> {
        Ok(self.wait(virsh, |virsh| Ok(virsh.try_wait()?))?.success())
    }

    /// Waits for something of `virsh`, while those who end are buried.
    fn wait<T>(&self, virsh: &mut Child, come: impl Fn(&mut Child) -> Result<Option<T>>) -> Result<T> {
        let start = Instant::now();
        let come = loop {
            if let Some(come) = come(virsh)? {
                break come;
            }
            if start.elapsed() > PATIENCE {
                virsh.kill()?;
                virsh.wait()?;
                bail!("virsh did not answer");
            }
            self.bury();
            std::thread::sleep(Duration::from_millis(3));
        };
        self.bury();
        Ok(come)
    }

    fn qemu(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.root.path().join(format!("run/qemu/{GUEST}.pid"))).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// Waits for QEMU if it ended.
    fn bury(&self) {
        if let Some(qemu) = self.qemu() {
            // It may not be ours yet, or no longer there.
            rustix::process::waitpid(Some(qemu), WaitOptions::NOHANG).ok();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Only if libvirt failed to: it removes the file with the number when QEMU ends.
        if let Some(qemu) = self.qemu() {
            rustix::process::kill_process(qemu, Signal::KILL).ok();
            rustix::process::waitpid(Some(qemu), WaitOptions::empty()).ok();
        }
    }
}

/// A guest of so little that only its disk matters.
fn domain(name: &str, disk: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
         <devices><emulator>{EMULATOR}</emulator>{disk}\
         <controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
    )
}

/// What virsh said of errors, one a line; libvirt's log is there as well.
fn errors(said: &str) -> String {
    let errors: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("error: "))
        .collect();
    errors.join("\n")
}

fn disk_of(xml: &str) -> &str {
    let from = xml.find("<disk ").expect("the guest has a disk");
    let to = xml.find("</disk>").expect("the disk ends") + "</disk>".len();
    &xml[from..to]
}
