//! imago, with one runtime for each thread and one task for each request that is under way.

use anyhow::{Result, anyhow};
use catena_workload::{Block, Figures, Lane, Op, Watch, Work, digest, first_reads};
use futures::future::try_join_all;
use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Barrier;
use tokio::runtime::{Builder, Runtime};

type Disk = FormatAccess<File>;

/// Does the work.
pub fn work(work: &Work) -> Result<Figures> {
    let runtime = runtime()?;
    let mut block = Block::new(work.block);
    if work.op == Op::Open {
        let watch = Watch::start()?;
        let disk = runtime.block_on(open(work))?;
        runtime.block_on(read(&disk, block.bytes(), 0))?;
        return watch.figures(1, digest(0, block.bytes()));
    }
    let disk = runtime.block_on(open(work))?;
    let offsets = work.offsets();
    let mut sum = 0;
    if work.op == Op::Read {
        for offset in first_reads(&offsets) {
            runtime.block_on(read(&disk, block.bytes(), *offset))?;
            sum = digest(sum, block.bytes());
        }
    }
    let gate = Barrier::new(work.threads + 1);
    let figures = std::thread::scope(|scope| -> Result<Figures> {
        let (disk, gate, offsets) = (&disk, &gate, &offsets);
        let threads: Vec<_> = (0..work.threads)
            .map(|number| {
                scope.spawn(move || -> Result<u64> {
                    let runtime = self::runtime()?;
                    gate.wait();
                    let first = number * work.queue;
                    let lanes = (first..first + work.queue).map(|lane| ask(work, disk, offsets, lane));
                    Ok(runtime.block_on(try_join_all(lanes))?.into_iter().sum())
                })
            })
            .collect();
        let watch = Watch::start()?;
        gate.wait();
        let mut ops = 0;
        for thread in threads {
            ops += thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        watch.figures(ops, sum)
    })?;
    if work.op == Op::Write {
        runtime.block_on(async {
            disk.flush().await?;
            disk.sync().await
        })?;
    }
    Ok(figures)
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().build()?)
}

async fn open(work: &Work) -> Result<Disk> {
    let qcow2 = Qcow2::<File>::builder_path(&work.image)
        .storage_open_options(StorageOpenOptions::new().direct(work.direct))
        .write(work.op == Op::Write)
        .open(PermissiveImplicitOpenGate::default())
        .await?;
    Ok(FormatAccess::new(qcow2))
}

async fn ask(work: &Work, disk: &Disk, offsets: &[u64], number: usize) -> Result<u64> {
    let mut block = Block::new(work.block);
    let seconds = (work.op == Op::Read).then_some(work.seconds);
    let mut lane = Lane::new(offsets, number, work.threads * work.queue, seconds);
    for offset in lane.by_ref() {
        match work.op {
            Op::Read => read(disk, block.bytes(), offset).await?,
            _ => {
                let bytes = IoSlice::new(block.marked(offset));
                disk.write(IoVector::from(vec![bytes]), offset).await?;
            }
        }
        // Files answer at once here: without this a task would never let the others ask.
        if work.queue > 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(lane.done())
}

async fn read(disk: &Disk, buf: &mut [u8], offset: u64) -> Result<()> {
    Ok(disk
        .read(IoVectorMut::from(vec![IoSliceMut::new(buf)]), offset)
        .await?)
}
