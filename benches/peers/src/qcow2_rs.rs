//! qcow2-rs, on system calls for one request at a time and on io_uring for more. It is of one thread.

use anyhow::{Result, anyhow, ensure};
use catena_workload::{Block, Figures, Lane, Op, Watch, Work, digest, first_reads};
use futures::future::try_join_all;
use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring};
use std::future::Future;

/// Does the work.
pub fn work(work: &Work) -> Result<Figures> {
    ensure!(work.threads == 1, "qcow2-rs is of one thread");
    // Its block size is the unit of what it asks of the file.
    let block_bits = if work.direct { 12 } else { 9 };
    let params = Qcow2DevParams::new(block_bits, None, None, work.op != Op::Write, work.direct);
    if work.queue > 1 {
        let open = async {
            let disk = qcow2_setup_dev_uring(&work.image, &params).await;
            disk.map_err(|error| anyhow!("{error:?}"))
        };
        tokio_uring::start(run(work, open))
    } else {
        let open = async {
            let disk = qcow2_setup_dev_sync(&work.image, &params).map_err(|error| anyhow!("{error:?}"))?;
            disk.qcow2_prep_io().await.map_err(|error| anyhow!("{error:?}"))?;
            Ok(disk)
        };
        tokio::runtime::Builder::new_current_thread()
            .build()?
            .block_on(run(work, open))
    }
}

async fn run<T: Qcow2IoOps>(work: &Work, open: impl Future<Output = Result<Qcow2Dev<T>>>) -> Result<Figures> {
    let mut block = Block::new(work.block);
    let watch = Watch::start()?;
    let disk = open.await?;
    if work.op == Op::Open {
        read(&disk, block.bytes(), 0).await?;
        return watch.figures(1, digest(0, block.bytes()));
    }
    let offsets = work.offsets();
    let mut sum = 0;
    if work.op == Op::Read {
        for offset in first_reads(&offsets) {
            read(&disk, block.bytes(), *offset).await?;
            sum = digest(sum, block.bytes());
        }
    }
    let watch = Watch::start()?;
    let lanes = (0..work.queue).map(|lane| ask(work, &disk, &offsets, lane));
    let ops = try_join_all(lanes).await?.into_iter().sum();
    let figures = watch.figures(ops, sum)?;
    if work.op == Op::Write {
        disk.flush_meta().await.map_err(|error| anyhow!("{error:?}"))?;
    }
    Ok(figures)
}

async fn ask<T: Qcow2IoOps>(work: &Work, disk: &Qcow2Dev<T>, offsets: &[u64], number: usize) -> Result<u64> {
    let mut block = Block::new(work.block);
    let seconds = (work.op == Op::Read).then_some(work.seconds);
    let mut lane = Lane::new(offsets, number, work.queue, seconds);
    for offset in lane.by_ref() {
        match work.op {
            Op::Read => read(disk, block.bytes(), offset).await?,
            _ => disk
                .write_at(block.marked(offset), offset)
                .await
                .map_err(|error| anyhow!("{error:?}"))?,
        }
    }
    Ok(lane.done())
}

async fn read<T: Qcow2IoOps>(disk: &Qcow2Dev<T>, buf: &mut [u8], offset: u64) -> Result<()> {
    let read = disk
        .read_at(buf, offset)
        .await
        .map_err(|error| anyhow!("{error:?}"))?;
    ensure!(read == buf.len(), "a short read");
    Ok(())
}
