// By docs/results.md: the AUROC of the check for invented against real objects, with its interval, and the scenes whose
// captions by `verify` name fewer or more invented objects than plain ones. `python -m bench.quality.verify_report` writes them.

export const THRESHOLD = 0.9;  // of verify
export const CONFIRMED = {"hallucinated": 27, "real": 98};  // percent of mentions with a probability of 0.9 or more
export const CHECK_AUROC = "0.961 [0.946, 0.973]";
export const VERIFY_IMAGES = {"scenes": 400, "improved": 135, "worsened": 0};
