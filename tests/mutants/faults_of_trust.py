"""Deliberate faults in the evidence, the comparison and the diagnostics, for `tests.mutants`."""

from tests.mutants.faults import Mutant

EVIDENCE = ("tests/trust/test_evidence.py",)
JOINT = ("tests/statistics/test_joint.py",)
COMPARISON = ("tests/trust/test_comparison.py",)
DIAGNOSTICS = ("tests/trust/test_weights.py",)
CALIBRATION = "tests/trust/test_calibration.py"
GROUPS = ("tests/inference/test_groups.py",)

FAULTS_OF_TRUST = [
    Mutant(
        "the jackknife leaves out the wrong share",
        "trust/evidence/ladder",
        "return num_draws * _log_mean(groups) - (num_draws - 1) * without",
        "return (num_draws + 1) * _log_mean(groups) - num_draws * without",
        EVIDENCE,
    ),
    Mutant(
        "log K of an evidence bound is forgotten",
        "trust/evidence/ladder",
        "return logsumexp(groups, axis=1) - math.log(groups.shape[1])",
        "return logsumexp(groups, axis=1) - math.log(groups.shape[1] + 1)",
        EVIDENCE,
    ),
    Mutant(
        "the chi bound is not halved",
        "trust/evidence/ladder",
        "float(chi / 2),",
        "float(chi),",
        EVIDENCE,
    ),
    Mutant(
        "the reverse bound has one draw too many of the guide",
        "trust/evidence/ladder",
        "values = logsumexp(together, axis=-1) - math.log(k)",
        "values = logsumexp(together, axis=-1) - math.log(k + 1)",
        EVIDENCE,
    ),
    Mutant(
        "draws of a chain count as independent",
        "trust/evidence/ladder",
        'array_stats.ess(values, 0, 1, method="mean")',
        "values.size",
        EVIDENCE,
    ),
    Mutant(
        "an unreliable reference is believed",
        "trust/evidence/ladder",
        "believable = not complaint and ess",
        "believable = ess",
        EVIDENCE,
    ),
    Mutant(
        "sliced Wasserstein sums over directions",
        "statistics/joint",
        "return np.sqrt(total / projected.shape[1])",
        "return np.sqrt(total)",
        JOINT,
    ),
    Mutant(
        "the kernel has no factor of two",
        "statistics/joint",
        "np.exp(-((between / median_distance(between)) ** 2) / 2)",
        "np.exp(-((between / median_distance(between)) ** 2))",
        JOINT,
    ),
    Mutant(
        "weighted variances have no weights",
        "statistics/distances",
        "variance = square @ weights",
        "variance = square.mean(1)",
        COMPARISON,
    ),
    Mutant(
        "quantiles are compared in one place",
        "statistics/distances",
        "columns |= {name: z.quantile(p) - r.quantile(p) for name, p in QUANTILES.items()}",
        "columns |= {name: z.quantile(0.5) - r.quantile(0.5) for name in QUANTILES}",
        COMPARISON,
    ),
    Mutant(
        "weighted sds are unweighted",
        "trust/weights",
        "np.sqrt(weights @ deviation)",
        "np.sqrt(deviation.mean(0))",
        DIAGNOSTICS,
    ),
    Mutant(
        "the error of a weighted mean is that of equal weights",
        "trust/weights",
        "np.sqrt(weights**2 @ deviation)",
        "np.sqrt(weights @ deviation / len(weights) / 3)",
        DIAGNOSTICS,
    ),
    Mutant(
        "resampling takes all weights for equal",
        "trust/weights",
        "total = np.cumsum(joint.weights)",
        "total = np.cumsum(np.ones_like(joint.weights))",
        DIAGNOSTICS,
    ),
    Mutant(
        "leave-one-out takes the guide for the posterior",
        "trust/weights",
        'tree, stats["log_p"], stats["log_q"], pointwise',
        'tree, stats["log_p"], stats["log_p"], pointwise',
        DIAGNOSTICS,
    ),
    Mutant(
        "noise is a variance",
        "trust/gradient_noise",
        "snr = np.abs(mean) / sd\n",
        "snr = np.abs(mean) / sd**2\n",
        ("tests/trust/test_gradient_noise.py",),
    ),
    Mutant(
        "linear response is the guide's own covariance",
        "trust/linear_response",
        "factor = _factor((hessian + hessian.T) / 2, list(leaves))",
        "factor = _factor(np.diag(hessian.diagonal()), list(leaves))",
        ("tests/trust/test_linear_response.py",),
    ),
    Mutant(
        "the prior counts as likelihood",
        "trust/decomposition",
        'return "prior" if is_prior else "likelihood"',
        'return "likelihood"',
        ("tests/trust/test_decomposition.py",),
    ),
    Mutant(
        "the KL has the wrong sign",
        "trust/decomposition",
        "kl=_mean(-(prior + minus_log_q))",
        "kl=_mean(prior + minus_log_q)",
        ("tests/trust/test_decomposition.py",),
    ),
    Mutant(
        "the scale of a fit is taken for its inverse",
        "statistics/ranks",
        "return Summary(-mean / sd, 1 / sd,",
        "return Summary(-mean / sd, sd,",
        (f"{CALIBRATION}::test_normal_scores_tell_shift_and_sd_ratio",),
    ),
    Mutant(
        "draws equal to the truth count as below it",
        "statistics/ranks",
        "below + rng.integers(0, equal + 1)",
        "below + equal",
        (f"{CALIBRATION}::test_ranks_count_draws_below_and_break_ties_at_random",),
    ),
    Mutant(
        "symmetry is tested from the nearest value on",
        "statistics/ranks",
        "np.argsort(-np.abs(u - 0.5), kind",
        "np.argsort(np.abs(u - 0.5), kind",
        (f"{CALIBRATION}::test_the_statistic_of_symmetry_is_that_of_kolmogorov_and_smirnov",),
    ),
    Mutant(
        "guides are shown the observed data, not the simulated ones",
        "programs/simulator",
        "_view(copy, seen[name]).copy_(data[name])",
        "_view(copy, seen[name])",
        (f"{CALIBRATION}::test_the_exact_posterior_is_calibrated",),
    ),
    Mutant(
        "fits draw with the same seed in all simulations",
        "trust/calibration/simulations",
        "result.posterior(self.num_draws, seed=seed_of_draws)",
        "result.posterior(self.num_draws)",
        (f"{CALIBRATION}::test_command",),
    ),
    Mutant(
        "predictions draw deterministic sites anew",
        "programs/replay",
        "        if not is_deterministic(msg):\n",
        "        if msg:\n",
        GROUPS,
    ),
]
