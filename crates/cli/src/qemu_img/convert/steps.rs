//! How far QEMU says a conversion is: it counts the pieces that it moves, each of them before it is read.

use catena_engine::{Disk, Extent, ExtentKind, GuestOffset, Result};

/// Bytes that are moved at once.
const PIECE: u64 = 2 << 20;

/// What makes the pieces.
#[derive(Clone, Debug)]
pub struct Cutting {
    /// Bytes of a cluster, where clusters are compressed one by one.
    pub cluster: Option<u64>,
    /// The sources: where each ends, and what its pieces end at where they are longer, which is its clusters.
    pub sources: Vec<(u64, u64)>,
    /// Whether zeros are written as data.
    pub everything: bool,
    /// Whether what the active image does not answer for is left to the target's backing image.
    pub shared: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Data,
    Zero,
    Backing,
}

/// How many bytes are moved, and what is said when so many of them are: only what is a hundredth apart.
pub fn steps(disk: &dyn Disk, cutting: &Cutting) -> Result<Vec<(u64, f32)>> {
    let mut total = 0_u64;
    walk(disk, cutting, |len| total = total.saturating_add(len))?;
    let mut steps: Vec<(u64, f32)> = Vec::new();
    let mut done = 0_u64;
    walk(disk, cutting, |len| {
        done = done.saturating_add(len);
        let percent = (100.0 * done as f64 / total.max(1) as f64) as f32;
        let last = steps.last().map_or(0.0, |(_, percent)| *percent);
        if percent > last + 1.0 || percent == 100.0 {
            steps.push((done, percent));
        }
    })?;
    Ok(steps)
}

fn walk(disk: &dyn Disk, cutting: &Cutting, mut moved: impl FnMut(u64)) -> Result<()> {
    let size = disk.size();
    let piece = cutting.cluster.unwrap_or(PIECE);
    let mut runs = Runs {
        disk,
        cutting,
        extents: Vec::new().into_iter(),
        ahead: None,
        at: 0,
    };
    let mut at = 0;
    let mut run = runs.next()?;
    while at < size {
        while run.is_some_and(|(_, end)| end <= at) {
            run = runs.next()?;
        }
        let Some((mut what, end)) = run else { break };
        let index = cutting.sources.partition_point(|(end, _)| *end <= at);
        let (own_end, align) = cutting.sources.get(index).copied().unwrap_or((size, 1));
        let own_start = index
            .checked_sub(1)
            .and_then(|before| cutting.sources.get(before))
            .map_or(0, |(end, _)| *end);
        let end = end.min(own_end);
        let mut len = end - at;
        let tail = (end - own_start) % align.max(1);
        if len > tail {
            len -= tail;
        }
        if what == What::Data || (cutting.everything && what == What::Zero) {
            len = len.min(piece);
        }
        if let Some(cluster) = cutting.cluster {
            if len < cluster {
                // A cluster is compressed as a whole.
                what = What::Data;
                len = cluster.min(size - at);
            } else {
                len -= len % cluster;
            }
        }
        if what == What::Data || (cutting.everything && what == What::Zero) {
            moved(len.next_multiple_of(512));
        }
        at += len;
    }
    Ok(())
}

/// Stretches that QEMU sees as one.
struct Runs<'a> {
    disk: &'a dyn Disk,
    cutting: &'a Cutting,
    extents: std::vec::IntoIter<Extent>,
    ahead: Option<Extent>,
    at: u64,
}

impl Runs<'_> {
    fn extent(&mut self) -> Result<Option<Extent>> {
        if let Some(extent) = self.ahead.take() {
            return Ok(Some(extent));
        }
        if let Some(extent) = self.extents.next() {
            return Ok(Some(extent));
        }
        if self.at >= self.disk.size() {
            return Ok(None);
        }
        let found = self
            .disk
            .extents(GuestOffset(self.at), GuestOffset(self.disk.size()))?;
        self.at = found.last().map_or(u64::MAX, |extent| extent.end().0);
        self.extents = found.into_iter();
        Ok(self.extents.next())
    }

    fn next(&mut self) -> Result<Option<(What, u64)>> {
        let Some(mut last) = self.extent()? else {
            return Ok(None);
        };
        let what = self.what(&last);
        while let Some(next) = self.extent()? {
            if self.what(&next) != what || !follows(&last, &next) {
                self.ahead = Some(next);
                break;
            }
            last = next;
        }
        Ok(Some((what, last.end().0)))
    }

    fn what(&self, extent: &Extent) -> What {
        if self.cutting.shared && (extent.layer > 0 || extent.kind == ExtentKind::Unallocated) {
            return What::Backing;
        }
        match extent.kind {
            ExtentKind::Zero { .. } | ExtentKind::Unallocated => What::Zero,
            _ => What::Data,
        }
    }
}

/// Whether one extent goes on where another ends, also in its file.
fn follows(first: &Extent, next: &Extent) -> bool {
    if first.layer != next.layer {
        return false;
    }
    match (&first.kind, &next.kind) {
        (
            ExtentKind::Data { file, offset },
            ExtentKind::Data {
                file: next_file,
                offset: next_offset,
            },
        ) => file == next_file && offset.0.checked_add(first.len) == Some(next_offset.0),
        (ExtentKind::Zero { offset }, ExtentKind::Zero { offset: next }) => {
            offset.is_some() == next.is_some()
        }
        (ExtentKind::Unallocated, ExtentKind::Unallocated) => true,
        _ => false,
    }
}
