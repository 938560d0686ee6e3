//! How the allocator is told to be frugal.
//!
//! A relay from which thousands of connections have gone has to be small again at once. glibc keeps what lies between
//! the last small pieces that are in use; mimalloc gives back each page that is free, if it is told not to wait.

use std::ffi::{c_int, c_long};

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc.h, in milliseconds, for which the bindings have no name.
const PURGE_DELAY: mi_option_t = 15 as c_int;
/// What it is unless set: the sign that the number above is still the option's.
const PURGE_DELAY_DEFAULTS: [c_long; 2] = [10, 1000];

/// Has free pages given back to the system at once. Not if the environment has something else to say of it.
#[allow(unsafe_code)]
pub(crate) fn give_back_at_once() {
    // SAFETY: both do no more than read and write a number of mimalloc's own table, at any time and from any thread.
    unsafe {
        if PURGE_DELAY_DEFAULTS.contains(&mi_option_get(PURGE_DELAY)) {
            mi_option_set(PURGE_DELAY, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn the_option_is_the_delay() {
        // SAFETY: as above.
        let delay = || unsafe { mi_option_get(PURGE_DELAY) };
        assert!(PURGE_DELAY_DEFAULTS.contains(&delay()), "{} ms", delay());
        give_back_at_once();
        assert_eq!(delay(), 0);
    }
}
