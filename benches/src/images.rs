//! The images that the jobs work on, made once by QEMU's tools.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Layers of the chain that is deep, but not too deep for QEMU.
const DEEP: usize = 100;

/// A folder of images. Those that a job changes are copied afresh before each run.
pub struct Images(PathBuf);

/// The files that a job changes: copies of these, under the same name without the first letter.
pub type Fresh = &'static [&'static str];

impl Images {
    /// Makes all images: `data` bytes of guest data each, on a disk of twice the size.
    pub fn make(folder: &Path, data: u64) -> Result<Self> {
        let images = Self(folder.to_owned());
        images.write_raw("data.raw", data)?;
        let size = (data * 2).to_string();
        let half = (data / 2).to_string();
        images.img("convert -f raw -O qcow2 data.raw data.qcow2")?;
        images.img(&format!("resize -q data.qcow2 {size}"))?;
        images.img("convert -f raw -O qcow2 -o cluster_size=4k data.raw small.qcow2")?;
        images.img("convert -c -f raw -O qcow2 data.raw packed.qcow2")?;
        images.img("create -q -f qcow2 -o preallocation=metadata,cluster_size=4k huge.qcow2 64G")?;
        images.img("create -q -f qcow2 -b data.qcow2 -F qcow2 =top.qcow2")?;
        images.io("=top.qcow2", &format!("write -q -P 7 {half} {half}"))?;
        images.copy("=top.qcow2", "top.qcow2")?;
        images.img("create -q -f qcow2 -b data.qcow2 -F qcow2 other.qcow2")?;
        images.io("other.qcow2", &format!("write -q -P 7 {half} {half}"))?;
        // Two bases that differ in little, so that a rebase has little to copy and much to compare.
        images.copy("data.qcow2", "newbase.qcow2")?;
        images.io("newbase.qcow2", "write -q -P 9 0 1M")?;
        images.copy("data.qcow2", "=base.qcow2")?;
        images.img(&format!(
            "create -q -u -f qcow2 -b base.qcow2 -F qcow2 =over.qcow2 {size}"
        ))?;
        images.io("=over.qcow2", &format!("write -q -P 5 {half} {half}"))?;
        images.deep(&size)?;
        Ok(images)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Makes fresh copies of what a job changes, and has everything written out, which is then not the job's to do.
    pub fn make_ready(&self, fresh: Fresh) -> Result<()> {
        for name in fresh {
            self.copy(&format!("={name}"), name)?;
        }
        let out = self.0.join("out");
        if out.exists() {
            std::fs::remove_file(out)?;
        }
        nix::unistd::sync();
        Ok(())
    }

    fn deep(&self, size: &str) -> Result<()> {
        self.img(&format!("create -q -f qcow2 deep0 {size}"))?;
        for layer in 1..DEEP {
            let (name, below) = (format!("deep{layer}"), format!("deep{}", layer - 1));
            self.img(&format!(
                "create -q -u -f qcow2 -b {below} -F qcow2 {name} {size}"
            ))?;
            let place = (layer * 7919) % 1000 * (1 << 16);
            self.io(&name, &format!("write -q -P {layer} {place} 64k"))?;
        }
        Ok(())
    }

    /// A raw file of bytes that do not compress to nothing: half of them random, half repeating.
    fn write_raw(&self, name: &str, len: u64) -> Result<()> {
        let mut out = BufWriter::new(File::create(self.0.join(name))?);
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

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        std::fs::copy(self.0.join(from), self.0.join(to)).with_context(|| from.to_owned())?;
        Ok(())
    }

    fn img(&self, words: &str) -> Result<()> {
        self.run("qemu-img", words.split(' '))
    }

    /// Writes into an image alone, whose backing need not be there: what is written covers whole clusters.
    fn io(&self, image: &str, command: &str) -> Result<()> {
        let alone = format!(
            r#"json:{{"driver":"qcow2","backing":null,"file":{{"driver":"file","filename":"{image}"}}}}"#
        );
        self.run("qemu-io", ["-t", "unsafe", "-c", command, &alone].into_iter())
    }

    fn run<'a>(&self, program: &str, words: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut command = Command::new(program);
        command.args(words).current_dir(&self.0).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("{command:?}"))?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
