//! How much room images take, and how much of it others share.

use super::Forest;

/// Bytes on the medium, of one image and what is below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of this image, its data file included.
    pub own: u64,
    /// What would be free if the image were deleted, and everything below it that it alone needs. Nothing, where others
    /// need it.
    pub exclusive: u64,
    /// Of everything below it that others need, too.
    pub shared: u64,
}

impl Sizes {
    /// Of all images of a forest, by their numbers.
    pub fn of(forest: &Forest) -> Vec<Self> {
        let images = forest.images();
        // For each image: what lies below it in all, and what of it only it needs.
        let mut known: Vec<Option<(u64, u64)>> = vec![None; images.len()];
        let mut passed = vec![false; images.len()];
        let own = |number: usize| {
            let image = images.get(number);
            let file = image.and_then(|image| image.data_file.as_ref()?.image());
            let data = file.and_then(|file| images.get(file));
            [image, data]
                .into_iter()
                .flatten()
                .map(|image| image.allocated)
                .sum()
        };
        let users = |number: usize| {
            images
                .get(number)
                .map_or(0, |image| image.overlays.len() + image.data_of.len())
        };
        for number in 0..images.len() {
            // Down to what is known already, and up again. A chain that comes back to itself ends where it does.
            let mut path = vec![number];
            while let Some(below) = path
                .last()
                .and_then(|last| images.get(*last))
                .and_then(super::Image::base)
                && let Some(passed @ false) = passed.get_mut(below)
            {
                *passed = true;
                path.push(below);
            }
            while let Some(number) = path.pop() {
                let below = images.get(number).and_then(super::Image::base);
                let (mut all, mut alone) = (0, 0);
                if let Some(below) = below {
                    let (beneath, exclusive) = known.get(below).copied().flatten().unwrap_or_default();
                    all = beneath + own(below);
                    if users(below) == 1 {
                        alone = exclusive + own(below);
                    }
                }
                if let Some(slot) = known.get_mut(number) {
                    *slot = Some((all, alone));
                }
            }
        }
        known
            .iter()
            .enumerate()
            .map(|(number, known)| {
                let (all, alone) = known.unwrap_or_default();
                let own: u64 = own(number);
                Self {
                    own,
                    exclusive: if users(number) == 0 { own + alone } else { 0 },
                    shared: all - alone,
                }
            })
            .collect()
    }
}
