//! libvirt's own answer to "what is this image?": what a storage pool shows of it.
//!
//! libvirt's storage driver does not run within `virsh`, as the driver for QEMU does. So a daemon is started for it, as a
//! user's own is: with all its state in a folder of its own, it meets no libvirt of the machine's and no other test's. It
//! ends with the thread that started it, also where that is killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Who runs the daemon where the test is run by root, whose daemon is the machine's.
const NOBODY: u32 = 65_534;
/// A daemon starts within a second; with several tests at once on a slow machine, within some.
const PATIENCE: Duration = Duration::from_secs(60);

/// libvirt's storage driver with a state of its own, which goes with it.
#[derive(Debug)]
pub struct Storage {
    root: TempDir,
    daemon: Child,
}

impl Storage {
    /// Starts it.
    ///
    /// # Errors
    /// If libvirt is not there or does not start.
    pub fn start() -> Result<Self> {
        // The names of sockets in it must stay short.
        let root = tempfile::Builder::new().prefix("lv").tempdir()?;
        std::fs::create_dir(root.path().join("run"))?;
        if rustix::process::geteuid().is_root() {
            for path in [root.path().to_owned(), root.path().join("run")] {
                chown(path, Some(NOBODY), Some(NOBODY))?;
            }
        }
        let log = root.path().join("log");
        let daemon = command(root.path(), "libvirtd")
            .args(["--timeout", "120"])
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("libvirtd")?;
        let mut storage = Self { root, daemon };
        let begun = Instant::now();
        while storage.virsh(&["pool-list"])?.is_err() {
            if begun.elapsed() > PATIENCE || storage.daemon.try_wait()?.is_some() {
                bail!("libvirtd did not start: {}", std::fs::read_to_string(&log)?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(storage)
    }

    /// The `<volume>` of each file of a folder that can be one, by its name; or what libvirt said instead.
    ///
    /// # Errors
    /// If libvirt cannot be asked, or takes no pool there.
    pub fn volumes(&self, folder: &Path) -> Result<BTreeMap<String, Result<String, String>>> {
        // The daemon may be somebody else.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
        let target = folder.to_str().context("the folder's name is UTF-8")?;
        let pool = self.virsh(&["pool-create-as", "pool", "dir", "--target", target])?;
        pool.map_err(|said| anyhow::anyhow!("no pool: {said}"))?;
        let mut volumes = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            let name = name.to_str().context("the file's name is UTF-8")?;
            let volume = self.virsh(&["vol-dumpxml", "--pool", "pool", "--vol", name])?;
            volumes.insert(name.to_owned(), volume);
        }
        self.virsh(&["pool-destroy", "pool"])?
            .map_err(|said| anyhow::anyhow!("{said}"))?;
        Ok(volumes)
    }

    fn virsh(&self, arguments: &[&str]) -> Result<Result<String, String>> {
        let output = command(self.root.path(), "virsh")
            .args(["--quiet", "--connect", "storage:///session"])
            .args(arguments)
            .output()
            .context("virsh")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        })
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // What is gone already need not be ended.
        self.daemon.kill().ok();
        self.daemon.wait().ok();
    }
}

/// A program of libvirt's for the daemon in that folder, which ends with the thread that runs it.
fn command(root: &Path, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        let nobody = NOBODY.to_string();
        command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
    }
    command
        .args(["--pdeathsig", "KILL", program])
        .current_dir("/")
        .env("HOME", root)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    for (name, folder) in [
        ("XDG_RUNTIME_DIR", "run"),
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_DATA_HOME", "data"),
    ] {
        command.env(name, root.join(folder));
    }
    command
}
