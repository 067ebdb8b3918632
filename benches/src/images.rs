//! The images that jobs work on, made by QEMU's tools when a job first asks for them.

use crate::job::{Job, Place};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// The folders in which jobs happen, all of which go in the end.
pub struct Images {
    disk: PathBuf,
    memory: PathBuf,
    folders: BTreeMap<Place, Folder>,
}

/// A folder of images.
pub struct Folder {
    path: PathBuf,
    made: BTreeSet<String>,
    mounted: bool,
    // Goes after the file system in it was unmounted.
    _dir: TempDir,
}

impl Images {
    /// Where folders are made when there is need.
    pub fn new(disk: &Path, memory: &Path) -> Result<Self> {
        let absolute = |path: &Path| std::fs::canonicalize(path).with_context(|| path.display().to_string());
        Ok(Self {
            disk: absolute(disk)?,
            memory: absolute(memory)?,
            folders: BTreeMap::new(),
        })
    }

    /// The folder in which a job happens, with all that it needs.
    pub fn folder(&mut self, job: &Job) -> Result<&Folder> {
        let folder = match self.folders.entry(job.place) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(match job.place {
                Place::Disk => Folder::plain(&self.disk)?,
                Place::Memory => Folder::plain(&self.memory)?,
                Place::Reflink => Folder::reflink(&self.disk)?,
            }),
        };
        for input in &job.inputs {
            if folder.made.insert(input.name.clone()) {
                eprintln!("catena-bench: making {}", input.name);
                (input.make)(folder, input.size).with_context(|| input.name.clone())?;
            }
        }
        Ok(folder)
    }
}

impl Folder {
    fn plain(place: &Path) -> Result<Self> {
        let dir = tempfile::tempdir_in(place).context("a folder for the images")?;
        Ok(Self {
            path: dir.path().to_owned(),
            made: BTreeSet::new(),
            mounted: false,
            _dir: dir,
        })
    }

    fn reflink(place: &Path) -> Result<Self> {
        let mut folder = Self::plain(place)?;
        let at = folder.path.join("xfs");
        std::fs::create_dir(&at)?;
        File::create(folder.path.join("xfs.raw"))?.set_len(24 << 30)?;
        folder.run("mkfs.xfs", &["-q", "-m", "reflink=1", "xfs.raw"])?;
        folder
            .run("mount", &["-o", "loop", "xfs.raw", "xfs"])
            .context("only root can mount a file system")?;
        folder.path = at;
        folder.mounted = true;
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a file is there.
    pub fn has(&self, name: &str) -> bool {
        self.path.join(name).exists()
    }

    /// Makes fresh copies of what a job changes, and has everything written out, which is then not the job's to do.
    pub fn make_ready(&self, fresh: &[&str]) -> Result<()> {
        for name in fresh {
            self.copy(&format!("={name}"), name)?;
        }
        if self.has("out") {
            std::fs::remove_file(self.path.join("out"))?;
        }
        let file = File::open(&self.path)?;
        nix::unistd::syncfs(file).context("writing everything out")
    }

    /// Keeps a result under another name.
    pub fn keep(&self, name: &str, kept: &str) -> Result<()> {
        std::fs::rename(self.path.join(name), self.path.join(kept)).with_context(|| name.to_owned())
    }

    /// Checks that two images show their guests the same.
    pub fn compare(&self, one: &str, other: &str) -> Result<()> {
        self.run("qemu-img", &["compare", one, other])
    }

    /// Copies a file: its holes stay holes, and its data is its own.
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        self.run("cp", &["--reflink=never", "--sparse=auto", from, to])
    }

    /// Runs `qemu-img`, its words parted by blanks.
    pub fn img(&self, words: &str) -> Result<()> {
        self.run("qemu-img", &words.split(' ').collect::<Vec<_>>())
    }

    /// Has `qemu-io` do things to an image alone, whose backing need not be there as long as whole clusters are written.
    pub fn io(&self, image: &str, commands: &[String]) -> Result<()> {
        let alone = format!(
            r#"json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{image}"}}}}"#
        );
        let mut words = vec!["-t", "unsafe"];
        for command in commands {
            words.extend(["-c", command]);
        }
        words.push(&alone);
        self.run("qemu-io", &words)
    }

    /// Runs a program in the folder.
    pub fn run(&self, program: &str, words: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        command.args(words).current_dir(&self.path).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("{command:?}"))?;
        if !output.status.success() {
            bail!(
                "{program} {}: {} {}",
                words.iter().take(8).copied().collect::<Vec<_>>().join(" "),
                String::from_utf8_lossy(&output.stderr).trim_end(),
                String::from_utf8_lossy(&output.stdout).trim_end()
            );
        }
        Ok(())
    }

    /// A raw file of bytes that do not compress to nothing: half of them random, half repeating.
    pub fn write_raw(&self, name: &str, len: u64) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(self.path.join(name))?);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for number in 0..len / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let word = if number / 64 % 2 == 0 { state } else { 0x6174_6164 };
            out.write_all(&word.to_le_bytes())?;
        }
        Ok(out.flush()?)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg(&self.path).status();
        }
    }
}

/// `data.raw`: so many bytes of data.
pub fn raw(folder: &Folder, len: u64) -> Result<()> {
    folder.write_raw("data.raw", len)
}

/// `files.raw`: so many bytes of this machine's own programs, libraries and texts, which compress as those of a guest do; and of data where
/// there are fewer.
pub fn files(folder: &Folder, len: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(folder.path.join("files.raw"))?);
    let mut left = len;
    let mut places: Vec<PathBuf> = ["/usr/lib", "/usr/bin", "/usr/share"].map(PathBuf::from).to_vec();
    places.reverse();
    while let Some(place) = places.pop().filter(|_| left > 0) {
        let Ok(entry) = place.symlink_metadata() else {
            continue;
        };
        if entry.is_dir() {
            let Ok(entries) = std::fs::read_dir(&place) else {
                continue;
            };
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            places.extend(names);
        } else if entry.is_file()
            && let Ok(file) = File::open(&place)
        {
            left -= std::io::copy(&mut file.take(left.min(64 << 20)), &mut out)?;
        }
    }
    let mut file = out.into_inner()?;
    if left > 0 {
        folder.write_raw("rest.raw", left)?;
        std::io::copy(&mut File::open(folder.path.join("rest.raw"))?, &mut file)?;
        std::fs::remove_file(folder.path.join("rest.raw"))?;
    }
    Ok(())
}

/// `data.qcow2`: so many bytes of data in a disk of twice the size. Needs [`raw`].
pub fn qcow2(folder: &Folder, len: u64) -> Result<()> {
    folder.img("convert -f raw -O qcow2 data.raw data.qcow2")?;
    folder.img(&format!("resize -q data.qcow2 {}", len * 2))
}

/// Bytes of the disk of [`deep`].
pub const DEEP_DISK: u64 = 16 << 30;
/// Bytes of the disk of [`full`].
pub const FULL_DISK: u64 = 1 << 30;
/// Clusters that each of their layers has.
const DEEP_CLUSTERS: u64 = 64;
const FULL_CLUSTERS: u64 = 16;

/// `deep0`, `deep1` …: so many layers, each with 64 random clusters of a disk that is mostly holes. A chain of any smaller depth is
/// what lies below the layer of that number.
pub fn deep(folder: &Folder, layers: u64) -> Result<()> {
    layered(folder, "deep", layers, DEEP_DISK, DEEP_CLUSTERS)
}

/// `deep-flat`: what the guest sees of so many layers of [`deep`], in one image.
pub fn deep_flat(folder: &Folder, layers: u64) -> Result<()> {
    folder.img(&format!("create -q -f qcow2 deep-flat {DEEP_DISK}"))?;
    for layer in 0..layers {
        folder.io("deep-flat", &writes(layer, DEEP_DISK, DEEP_CLUSTERS))?;
    }
    Ok(())
}

/// `full-flat`: the same of [`full`], which it needs.
pub fn full_flat(folder: &Folder, layers: u64) -> Result<()> {
    folder.copy("full0", "full-flat")?;
    for layer in 1..layers {
        folder.io("full-flat", &writes(layer, FULL_DISK, FULL_CLUSTERS))?;
    }
    Ok(())
}

/// `full0`, `full1` …: the same over a base that is full of data, each layer with 16 random clusters.
pub fn full(folder: &Folder, layers: u64) -> Result<()> {
    if !folder.has("full0") {
        folder.write_raw("full.raw", FULL_DISK)?;
        folder.img("convert -f raw -O qcow2 full.raw full0")?;
        std::fs::remove_file(folder.path().join("full.raw"))?;
    }
    layered(folder, "full", layers, FULL_DISK, FULL_CLUSTERS)
}

fn layered(folder: &Folder, prefix: &str, layers: u64, size: u64, clusters: u64) -> Result<()> {
    for layer in 0..layers {
        let name = format!("{prefix}{layer}");
        if folder.has(&name) {
            continue;
        }
        match layer.checked_sub(1) {
            None => folder.img(&format!("create -q -f qcow2 {name} {size}"))?,
            Some(below) => folder.img(&format!(
                "create -q -u -f qcow2 -b {prefix}{below} -F qcow2 {name} {size}"
            ))?,
        }
        folder.io(&name, &writes(layer, size, clusters))?;
    }
    Ok(())
}

/// What a layer writes: random clusters, full of its number.
fn writes(layer: u64, size: u64, clusters: u64) -> Vec<String> {
    let places = size >> 16;
    let mut state = layer * 2 + 1;
    (0..clusters)
        .map(|_| {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let place = (state >> 33) % places;
            format!("write -q -P {} {} 64k", layer % 255 + 1, place << 16)
        })
        .collect()
}
