//! What the tests need of the machine: real tools, since an oracle is never a mock of one.
//!
//! A tool counts as there when it can be run and is new enough, however it came. What lacks is installed from Debian
//! where that may be done (root, apt); where it may not, the missing packages are named, and no test runs without them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::{find, output, run};

/// One thing the tests run, and the Debian package that has it.
struct Need {
    package: &'static str,
    what: What,
}

enum What {
    /// A program.
    Program(&'static str),
    /// A program whose `--version` says at least this major version. Oracles of an older major version lack features
    /// that the tests compare.
    Since(&'static str, u32),
    /// Any of these files; the first is Debian's.
    File(&'static [&'static str]),
}

use What::{File, Program, Since};

const NEEDS: &[Need] = &[
    Need {
        package: "qemu-utils",
        what: Since("qemu-img", 10),
    },
    Need {
        package: "qemu-utils",
        what: Since("qemu-io", 10),
    },
    Need {
        package: "qemu-utils",
        what: Since("qemu-nbd", 10),
    },
    Need {
        package: "qemu-system-x86",
        what: Since("qemu-system-x86_64", 10),
    },
    Need {
        package: "seabios",
        what: File(&[
            "/usr/share/seabios/bios-256k.bin",
            "/usr/share/qemu/bios-256k.bin",
        ]),
    },
    Need {
        package: "libvirt-clients",
        what: Since("virsh", 11),
    },
    Need {
        package: "libvirt-daemon",
        what: Since("libvirtd", 11),
    },
    Need {
        package: "libvirt-daemon-driver-qemu",
        what: File(LIBVIRT_QEMU),
    },
    Need {
        package: "libvirt-daemon-driver-secret",
        what: File(LIBVIRT_SECRET),
    },
    Need {
        package: "libvirt-daemon-driver-storage",
        what: File(LIBVIRT_STORAGE),
    },
    Need {
        package: "acl",
        what: Program("setfacl"),
    },
    Need {
        package: "e2fsprogs",
        what: Program("mkfs.ext4"),
    },
    Need {
        package: "xfsprogs",
        what: Program("mkfs.xfs"),
    },
    Need {
        package: "libnbd-bin",
        what: Program("nbdcopy"),
    },
    Need {
        package: "libnbd-bin",
        what: Program("nbdinfo"),
    },
    Need {
        package: "strace",
        what: Program("strace"),
    },
    Need {
        package: "valgrind",
        what: Program("valgrind"),
    },
];

/// libvirt's drivers, which its daemon loads (see `catena_testkit::libvirt`).
const LIBVIRT_QEMU: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib/aarch64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
    "/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
];
const LIBVIRT_SECRET: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_secret.so",
    "/usr/lib/aarch64-linux-gnu/libvirt/connection-driver/libvirt_driver_secret.so",
    "/usr/lib64/libvirt/connection-driver/libvirt_driver_secret.so",
    "/usr/lib/libvirt/connection-driver/libvirt_driver_secret.so",
];
const LIBVIRT_STORAGE: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_storage.so",
    "/usr/lib/aarch64-linux-gnu/libvirt/connection-driver/libvirt_driver_storage.so",
    "/usr/lib64/libvirt/connection-driver/libvirt_driver_storage.so",
    "/usr/lib/libvirt/connection-driver/libvirt_driver_storage.so",
];

/// Packages whose version in Debian 12 is too old, with those of their dependencies that must match. Naming each keeps
/// apt from taking anything else (systemd, say) from backports.
const BACKPORTED: &[&str] = &[
    "qemu-utils",
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
    "libvirt0",
    "libvirt-common",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-common",
    "libvirt-daemon-log",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-driver-secret",
    "libvirt-daemon-driver-storage",
];

const BACKPORTS: &str = "/etc/apt/sources.list.d/catena-backports.list";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs whatever of [`NEEDS`] is missing; quick when nothing is.
pub fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages(&missing);
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!(
            "the tests need what is not here: {}. Install these packages (their names in Debian), or run this as root \
             where there is apt: {}",
            describe(&missing),
            packages.join(" ")
        );
    }
    eprintln!("xtask: missing: {}", describe(&missing));
    let release = std::fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let backports = needs_backports(&release);
    if backports {
        add_backports()?;
    }
    run(apt().arg("update"))?;
    run(apt()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(names(&packages, backports)))?;
    let missing = self::missing();
    if !missing.is_empty() {
        bail!("still missing after apt-get install: {}", describe(&missing));
    }
    Ok(())
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !is_there(&need.what)).collect()
}

fn is_there(what: &What) -> bool {
    match what {
        Program(name) => find(name).is_some(),
        Since(name, major) => major_version(name).is_some_and(|found| found >= *major),
        File(paths) => paths.iter().any(|path| Path::new(path).is_file()),
    }
}

fn describe(missing: &[&Need]) -> String {
    let words = missing.iter().map(|need| match need.what {
        Program(name) => name.to_owned(),
        Since(name, major) => format!("{name} {major} or newer"),
        File(paths) => paths.first().copied().unwrap_or_default().to_owned(),
    });
    words.collect::<Vec<_>>().join(", ")
}

fn packages(missing: &[&Need]) -> Vec<&'static str> {
    let mut packages: Vec<_> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn major_version(program: &str) -> Option<u32> {
    let path = find(program)?;
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

/// The major version in the first line of `text`: its first word of numbers and dots.
fn parse_major(text: &str) -> Option<u32> {
    text.lines().next()?.split_whitespace().find_map(|word| {
        let (major, rest) = word.split_once('.')?;
        rest.starts_with(|c: char| c.is_ascii_digit())
            .then(|| major.parse().ok())?
    })
}

fn needs_backports(os_release: &str) -> bool {
    os_release.lines().any(|line| line == "VERSION_CODENAME=bookworm")
}

/// The arguments of `apt-get install`. If one backported package is wanted, all of them are: their versions go together.
fn names(packages: &[&'static str], backports: bool) -> Vec<String> {
    if !backports || !packages.iter().any(|package| BACKPORTED.contains(package)) {
        return packages.iter().map(|&package| package.to_owned()).collect();
    }
    let plain = packages
        .iter()
        .filter(|package| !BACKPORTED.contains(package))
        .map(|&package| package.to_owned());
    BACKPORTED
        .iter()
        .map(|package| format!("{package}/bookworm-backports"))
        .chain(plain)
        .collect()
}

/// Debian publishes backports with a priority (100) below that of the release: only what is asked for by name comes
/// from there, so no pin is needed.
fn add_backports() -> Result<()> {
    let policy = output(Command::new("apt-cache").arg("policy"))?;
    if policy.contains("bookworm-backports/main") {
        return Ok(());
    }
    let signed = if Path::new(KEYRING).is_file() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    let line = format!("deb {signed}http://deb.debian.org/debian bookworm-backports main\n");
    std::fs::write(BACKPORTS, line).context(BACKPORTS)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "--quiet",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(["-o", "Dpkg::Options::=--force-confold"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

#[cfg(test)]
mod tests {
    use super::{names, needs_backports, parse_major};

    #[test]
    fn reads_the_version_out_of_what_tools_print() {
        assert_eq!(
            parse_major("qemu-img version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Some(10)
        );
        assert_eq!(parse_major("QEMU emulator version 9.2.0"), Some(9));
        assert_eq!(parse_major("11.3.0\n"), Some(11));
        assert_eq!(parse_major("no version. here"), None);
    }

    #[test]
    fn takes_from_backports_only_what_must_match_and_only_on_bookworm() {
        assert!(needs_backports("ID=debian\nVERSION_CODENAME=bookworm\n"));
        assert!(!needs_backports("ID=debian\nVERSION_CODENAME=trixie\n"));
        assert_eq!(names(&["acl"], true), ["acl"]);
        assert_eq!(
            names(&["acl", "libvirt-clients"], false),
            ["acl", "libvirt-clients"]
        );
        let mixed = names(&["acl", "libvirt-clients"], true);
        assert!(mixed.contains(&"acl".to_owned()));
        assert!(mixed.contains(&"libvirt0/bookworm-backports".to_owned()));
        assert!(!mixed.iter().any(|name| name.starts_with("systemd")));
    }
}
