//! Tests of the bus: one contract for every adapter, and what only one of them promises.

mod contract;
