//! Where an address lies, and whose it is in a cluster.

use super::{Machine, lanes};
use crate::ir::{Locate, Space};
use crate::space;
use crate::warp::Warp;

impl Machine<'_> {
    pub(super) fn locate(&self, warp: &mut Warp, locate: &Locate, mask: u32) {
        let own_rank = self.blocks[warp.block].rank;
        match locate {
            Locate::InSpace {
                p,
                a,
                space,
                cluster,
            } => {
                let addresses = warp.registers.row::<u64>(*a);
                let found = lanes(mask).filter(|lane| {
                    let (found, address) = space::resolve(addresses[*lane]);
                    let own = space::shared(address).0.is_none_or(|rank| rank == own_rank);
                    match space {
                        Space::Shared => found == Space::Shared && (*cluster || own),
                        Space::Const => false,
                        space => found == *space,
                    }
                });
                let bits = found.fold(0, |bits, lane| bits | 1 << lane);
                warp.registers.put_predicate(*p, mask, bits);
            }
            Locate::Map {
                d,
                a,
                rank,
                is_wide,
                is_generic,
            } => {
                let ranks = *warp.registers.row::<u32>(*rank);
                let window = if *is_generic && *is_wide {
                    space::SHARED
                } else {
                    0
                };
                let map = |address: u64, rank: u32| {
                    let (_, offset) = space::shared(address.wrapping_sub(window));
                    window + (u64::from(rank + 1) << space::RANK_SHIFT) + u64::from(offset)
                };
                if *is_wide {
                    let a = *warp.registers.row::<u64>(*a);
                    let out = std::array::from_fn(|lane| map(a[lane], ranks[lane] & 0xf));
                    warp.registers.put(*d, mask, &out);
                } else {
                    let a = *warp.registers.row::<u32>(*a);
                    let out =
                        std::array::from_fn(|lane| map(a[lane].into(), ranks[lane] & 0xf) as u32);
                    warp.registers.put(*d, mask, &out);
                }
            }
            Locate::Rank { d, a, is_wide } => {
                let rank = |address: u64| space::shared(address).0.unwrap_or(own_rank);
                let out = if *is_wide {
                    warp.registers
                        .row::<u64>(*a)
                        .map(|a| rank(space::resolve(a).1))
                } else {
                    warp.registers.row::<u32>(*a).map(|a| rank(a.into()))
                };
                warp.registers.put(*d, mask, &out);
            }
        }
    }
}
