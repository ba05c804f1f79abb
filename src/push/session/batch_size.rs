//! How many changes the next batch may have: few while the target is not known to answer, fewer after a batch that was
//! too large, and then more again.

/// Changes in the first request while the target is not known to answer.
const PROBE_ROWS: usize = 10;

#[derive(Default)]
pub struct BatchSize {
    rows: usize,
    /// A batch was too large: their size grows in small steps from now on.
    too_large: bool,
}

impl BatchSize {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Begins with a probe where the last request has failed, otherwise with whole batches.
    pub fn begin(&mut self, most: usize, has_failed: bool) {
        if has_failed {
            self.rows = PROBE_ROWS;
        } else if !self.too_large {
            self.rows = most;
        }
    }

    /// The setting has this value now.
    pub fn limit(&mut self, most: usize) {
        self.rows = self.rows.min(most);
    }

    /// A batch of so many changes was too large.
    pub fn halve(&mut self, rows: usize) {
        (self.rows, self.too_large) = ((rows / 2).max(1), true);
    }

    /// There is too little memory for what was to be read.
    pub fn one_at_a_time(&mut self) {
        (self.rows, self.too_large) = (1, true);
    }

    /// A batch was answered. After a probe the size doubles: over a slow link most batches get through before one takes
    /// too long.
    pub fn grow(&mut self, most: usize) {
        let step = if self.too_large { self.rows / 10 + 1 } else { self.rows };
        self.rows = (self.rows + step).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_after_a_probe() {
        let mut size = BatchSize::default();
        size.begin(1000, true);
        assert_eq!(size.rows(), PROBE_ROWS);
        size.grow(1000);
        assert_eq!(size.rows(), 2 * PROBE_ROWS);
        size.begin(1000, false);
        assert_eq!(size.rows(), 1000);
        size.limit(100);
        assert_eq!(size.rows(), 100);
    }

    #[test]
    fn it_grows_in_small_steps_after_a_batch_that_was_too_large() {
        let mut size = BatchSize::default();
        size.begin(1000, false);
        size.halve(1000);
        size.grow(1000);
        assert_eq!(size.rows(), 551);
        size.begin(1000, false);
        assert_eq!(size.rows(), 551, "a new look at the settings does not make it forget");
        size.halve(1);
        assert_eq!(size.rows(), 1);
    }
}
