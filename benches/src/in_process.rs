//! Catena's library in process, as a contender.
//!
//! A disk that is only read is a [`catena::Stack`], one that is written a [`Qcow2Disk`] over the stack of what is below it. Requests
//! return when they are answered, so as many threads ask as there are to be requests under way.

use anyhow::{Context, Result};
use catena::chain::Chain;
use catena::open::Sharing;
use catena::{Disk, GuestOffset, Policy, Start, detect};
use catena_engine::{Qcow2, Qcow2Disk, Stack, WritableDisk};
use catena_storage::{LocalFile, OpenOptions, Storage};
use catena_workload::{Figures, Op, SyncDisk, Work, work_sync};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::Arc;

/// Does a work.
pub fn work(work: &Work) -> Result<Figures> {
    if let Some(most) = work.descriptors {
        let (_, allowed) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most.min(allowed), allowed)?;
    }
    match work.op {
        Op::Write => work_sync(work, || open_to_write(work)),
        _ => work_sync(work, || open_to_read(work)),
    }
}

struct Read(Stack);

impl SyncDisk for Read {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.0.read_at(buf, GuestOffset(offset))?)
    }

    fn write(&self, _: &[u8], _: u64) -> Result<()> {
        anyhow::bail!("it is open for reading")
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

struct Written(Qcow2Disk);

impl SyncDisk for Written {
    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.0.read_at(buf, GuestOffset(offset))?)
    }

    fn write(&self, buf: &[u8], offset: u64) -> Result<()> {
        Ok(self.0.write_at(buf, GuestOffset(offset))?)
    }

    fn flush(&self) -> Result<()> {
        Ok(self.0.flush()?)
    }
}

fn chain(work: &Work) -> Chain {
    detect(&Start::at(&work.image, None), &Policy::libvirt())
}

fn open_to_read(work: &Work) -> Result<Read> {
    if work.direct {
        // Only one layer is read around the page cache.
        let file = LocalFile::open(&work.image, &OpenOptions::new().direct(true))?;
        let image = Arc::new(Qcow2::open(Arc::new(file), None)?);
        return Ok(Read(Stack::new([(image as _, work.image.clone())])));
    }
    Ok(Read(chain(work).open(Sharing::Locked)?))
}

fn open_to_write(work: &Work) -> Result<Written> {
    let chain = chain(work);
    let backing: Option<Arc<dyn Disk>> = match chain.layers.len() {
        0 => return Err(anyhow::anyhow!("{:?}", chain.end)).context("no image"),
        1 => None,
        _ => Some(Arc::new(chain.open_from(1, Sharing::Locked)?)),
    };
    drop(chain);
    let options = OpenOptions::new().write(true).direct(work.direct);
    let storage: Arc<dyn Storage> = Arc::new(LocalFile::open(&work.image, &options)?);
    Ok(Written(Qcow2Disk::open(storage, None, backing)?))
}
