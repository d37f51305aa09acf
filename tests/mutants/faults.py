"""Deliberate faults in the objectives and the compiler, for `tests.mutants`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong.
        file: the module, without ".py".
        old: what stands there, exactly once.
        new: what stands there instead.
        tests: what has to notice, as arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def law(*ids: str) -> tuple[str, ...]:
    """Rows of the table of expectations: objective-gradient-model."""
    return tuple(f"tests/objectives/laws/test_gradient.py::test_expectation[{i}]" for i in ids)


def landing(*ids: str) -> tuple[str, ...]:
    """Rows of the table of gradients at the posterior: objective-gradient-how particles run."""
    test = "test_guide_gradient_vanishes_at_the_posterior_for_every_draw"
    return tuple(f"tests/objectives/laws/test_landing.py::{test}[{i}]" for i in ids)


def graph(*names: str) -> tuple[str, ...]:
    """Rows of the table of awkward programs."""
    test = "tests/compilation/test_awkward.py::test_graph_gives_what_the_objective_gives"
    return tuple(f"{test}[{name}]" for name in names)


SOBOL = "tests/objectives/test_sobol.py"
VIMCO = "tests/objectives/laws/test_vimco.py"
ENUMERATION = "tests/objectives/laws/test_enumeration.py"

VARYING = "tests/programs/test_varying_sites.py"
GUIDES = "tests/objectives/laws/test_guide_enumeration.py"
FAULTS = [
    # bounds
    Mutant(
        "log K is forgotten",
        "objectives/bounds",
        "log_weights.logsumexp(0) - math.log(log_weights.shape[0])",
        "log_weights.logsumexp(0)",
        law("IW-auto-shared-and-local"),
    ),
    Mutant(
        "the Renyi bound is not divided by its power",
        "objectives/bounds",
        "log_mean_exp(power * log_weights) / power",
        "log_mean_exp(power * log_weights)",
        law("Renyi 0.5-auto-shared-and-local"),
    ),
    Mutant(
        "left and right sum are swapped",
        "objectives/bounds",
        "(high if right else low) * log_weights",
        "(low if right else high) * log_weights",
        law("TVO left-auto-shared-and-local"),
    ),
    Mutant(
        "the combination weighs the wrong way round",
        "objectives/bounds",
        "return beta * mean(log_weights) + (1 - beta) * log_mean_exp(log_weights)",
        "return (1 - beta) * mean(log_weights) + beta * log_mean_exp(log_weights)",
        law("CIWAE-auto-shared-and-local"),
    ),
    Mutant(
        "the jackknife adds the bias",
        "objectives/bounds",
        "(-1) ** left_out * (num_particles - left_out)",
        "(num_particles - left_out)",
        law("jackknife-auto-shared-and-local"),
    ),
    Mutant(
        "ranks of the tail-adaptive weights count from the wrong end",
        "objectives/bounds",
        "fixed.unsqueeze(0) >= fixed.unsqueeze(1)",
        "fixed.unsqueeze(0) <= fixed.unsqueeze(1)",
        law("tail-adaptive-only-local"),
    ),
    Mutant(
        "curvature of the importance-weighted bound is its slope",
        "objectives/bounds",
        "return slope, slope * (1 - slope)",
        "return slope, slope",
        law("IW-doubly_reparameterized-shared-and-local"),
    ),
    Mutant(
        "curvature is dropped",
        "objectives/bounds",
        "(curvature,) = torch.autograd.grad(slope.sum(), point)",
        "pass",
        law("Renyi 0.5-doubly_reparameterized-shared-and-local"),
    ),
    Mutant(
        "the baseline includes the particle's own draw",
        "objectives/bounds",
        "others = (log_weights.sum(0) - log_weights) / (num_particles - 1)",
        "others = log_weights.mean(0, keepdim=True).expand_as(log_weights)",
        law("IW-score-discrete-cells"),
    ),
    Mutant(
        "the right sum's covariance is dropped",
        "objectives/bounds",
        "log_mean_exp(b * log_weights) / b**2 - (1 - b) / b * average",
        "log_mean_exp(b * log_weights) / b",
        law("TVO right-wake-joint"),
    ),
    # target and particles
    Mutant(
        "the subsample scale stands inside the bound",
        "objectives/target",
        "block.weight * inner(block.log_weights).reshape(num_outer, -1).sum(1)",
        "inner(block.weight * block.log_weights).reshape(num_outer, -1).sum(1)",
        law("IW-auto-subsampled"),
    ),
    Mutant(
        "the subsample scale is dropped",
        "objectives/target",
        "total + factor.weight * factor.value",
        "total + factor.value",
        law("ELBO-auto-subsampled"),
    ),
    Mutant(
        "a subsample inside the outer bound is let through",
        "objectives/target",
        "        _check_full_data(particles)\n",
        "        pass\n",
        ("tests/objectives/laws/test_nested.py::test_subsampling_is_refused",),
    ),
    Mutant(
        "an upper bound is maximized",
        "objectives/target",
        "return -1 if self.upper else 1",
        "return 1",
        law("chi-auto-joint"),
    ),
    Mutant(
        "the guide's density has the wrong sign",
        "objectives/particles/scored",
        'value = value if key.side == "model" else -value',
        "value = value",
        law("ELBO-auto-shared-and-local"),
    ),
    Mutant(
        "the mask is forgotten",
        "objectives/particles/scored",
        'return scale_and_mask(density, _user_scale(site), site["mask"])',
        "return scale_and_mask(density, _user_scale(site), None)",
        law("ELBO-auto-scaled-{'model_mask': [True, False, True]}"),
    ),
    Mutant(
        "the user's scale is forgotten",
        "objectives/particles/scored",
        "return 1.0 if not isinstance(scale, Tensor) and math.isclose(scale, 1.0) else scale",
        "return 1.0",
        law("IW-auto-scaled-{'guide_scale': 0.4}"),
    ),
    Mutant(
        "a fixed draw is live",
        "objectives/particles/scored",
        'log_density(site, site["value"].detach()) for site in self.sites',
        'log_density(site, site["value"]) for site in self.sites',
        landing("ELBO-doubly_reparameterized-vectorized"),
    ),
    # gradients
    Mutant(
        "kinks are overlooked",
        "objectives/smoothness",
        "return bool(unexplained[worst] > _SMALLEST_JUMP * slope.abs().max())",
        "return False",
        ("tests/objectives/test_lower_bounds.py::test_gradient_of_a_minimum",),
    ),
    Mutant(
        "h is dropped",
        "objectives/gradients/unbiased",
        "total = total - block.weight * avoiding(upstream, linear, particles.zero)",
        "pass",
        law("IW-doubly_reparameterized-shared-and-local"),
    ),
    Mutant(
        "h has the wrong sign",
        "objectives/gradients/unbiased",
        "total = total - block.weight * avoiding(upstream, linear, particles.zero)",
        "total = total + block.weight * avoiding(upstream, linear, particles.zero)",
        law("IW-doubly_reparameterized-shared-and-local"),
    ),
    Mutant(
        "paths through what was drawn before count with z",
        "objectives/gradients/unbiased",
        "total = total + without(term, generations(before))",
        "total = total + term",
        law("IW-doubly_reparameterized-shared-and-local"),
    ),
    Mutant(
        "log q is fixed in its own draw alone",
        "objectives/gradients/unbiased",
        "return total + without(direct, generations(upstream))",
        "return total + direct",
        landing("ELBO-doubly_reparameterized-vectorized"),
    ),
    Mutant(
        "the weight of log q is dropped",
        "objectives/gradients/unbiased",
        "direct = direct + drawn.weight * (slope * log_q).sum()",
        "direct = direct + (slope * log_q).sum()",
        (
            "tests/objectives/laws/test_landing.py::"
            "test_local_gradients_vanish_at_the_posterior_under_subsampling",
        ),
    ),
    Mutant(
        "the outer bound's curvature is dropped",
        "objectives/gradients/unbiased",
        "outer_slope * curvature + outer_curvature * block.weight * slope**2",
        "outer_slope * curvature",
        law("nested 2 x 2-doubly_reparameterized-nested"),
    ),
    Mutant(
        "shared latents ignore the outer bound's curvature",
        "objectives/gradients/unbiased",
        "bent = (outer[1] * totals(particles, target.inner)).sum()",
        "bent = 0 * totals(particles, target.inner).sum()",
        law("nested 2 x 2-doubly_reparameterized-nested"),
    ),
    Mutant(
        "part of a gradient is taken for the whole",
        "objectives/gradients/paths",
        "return total - through(total, generations)",
        "return total",
        landing("IW-doubly_reparameterized-vectorized"),
    ),
    Mutant(
        "generations are cut in the wrong order",
        "objectives/gradients/paths",
        "for tensors in reversed(generations):",
        "for tensors in generations:",
        ("tests/objectives/test_paths.py",),
    ),
    # score
    Mutant(
        "the learning signal has the wrong sign",
        "objectives/gradients/score",
        "signal = block.weight * (target.inner(log_weights) - baseline)",
        "signal = block.weight * (baseline - target.inner(log_weights))",
        law("IW-score-discrete-cells"),
    ),
    Mutant(
        "the slope beside log q is dropped",
        "objectives/gradients/score",
        "term = signal * sum_except(drawn.log_q(), dims) + drawn.weight * slope * scaled",
        "term = signal * sum_except(drawn.log_q(), dims)",
        (f"{VIMCO}::test_vimco_has_less_noise_than_reinforce",),
    ),
    Mutant(
        "RLOO includes the draw itself",
        "objectives/gradients/score",
        "signal = signal - (signal.sum(0) - signal) / (num_outer - 1)",
        "signal = signal - signal.mean(0)",
        ("tests/objectives/laws/test_gradient.py::test_score_of_two_particles",),
    ),
    Mutant(
        "the learning signal is differentiated",
        "objectives/gradients/score",
        "signal = downstream_cost(particles, target.inner, drawn).detach()",
        "signal = downstream_cost(particles, target.inner, drawn)",
        law("ELBO-score-discrete-cells"),
    ),
    Mutant(
        "the outer slope is dropped from the score",
        "objectives/gradients/score",
        "return signal, outer_slope * slope, 1.0",
        "return signal, slope, 1.0",
        ("tests/objectives/laws/test_landing.py::test_scores_land",),
    ),
    Mutant(
        "costs of other plates' elements are left out of their sum",
        "objectives/gradients/score",
        "outside = [dim for dim in range(1 - tensor.dim(), 0) if dim not in common]",
        "outside = []",
        law("ELBO-score-shared-and-local"),
    ),
    Mutant(
        "the baseline is learnt from its negative",
        "objectives/gradients/baselines",
        "loss = ((signal - baseline) ** 2).sum()",
        "loss = ((signal + baseline) ** 2).sum()",
        (f"{VIMCO}::test_network_learns_the_mean_cost",),
    ),
    Mutant(
        "the baseline is added to the signal",
        "objectives/gradients/baselines",
        "return Baselined(signal - baseline.detach(), loss)",
        "return Baselined(signal + baseline.detach(), loss)",
        (f"{VIMCO}::test_baseline_takes_noise_off_one_particle",),
    ),
    # wake, partial, sleep
    Mutant(
        "the wake phase is turned round",
        "objectives/gradients/wake",
        "return _model_part(particles, target, choices) + share * guide",
        "return _model_part(particles, target, choices) - share * guide",
        law("wake-wake-joint"),
    ),
    Mutant(
        "the wake phase counts in full",
        "objectives/gradients/wake",
        "return _model_part(particles, target, choices) + share * guide",
        "return _model_part(particles, target, choices) + guide",
        ("tests/objectives/test_covering.py::TestSleep::test_gradient_is_that_of_dreams",),
    ),
    Mutant(
        "log q stays in the model's part",
        "objectives/gradients/wake",
        "total = total + drawn.weight * (slope * log_q).sum() / particles.num_outer\n    return",
        "pass\n    return",
        law("wake-wake-joint"),
    ),
    Mutant(
        "the doubly reparameterized wake phase has the slope in the place of h",
        "objectives/gradients/wake",
        "bent = (curvature * block.log_weights).sum()",
        "bent = (slope * block.log_weights).sum()",
        law("wake-doubly_reparameterized-joint"),
    ),
    Mutant(
        "the model follows the guide's bound",
        "objectives/gradients/wake",
        "difference = _slope_of_all(block) - _slope_of_mean(block)",
        "difference = 0 * _slope_of_all(block)",
        (
            "tests/objectives/laws/test_signal_to_noise.py::"
            "test_partial_bound_leaves_the_model_the_signal_of_all_particles",
        ),
    ),
    Mutant(
        "dreams count in full",
        "objectives/gradients/sleep",
        "return share * total / num",
        "return total / num",
        ("tests/objectives/test_covering.py::TestSleep::test_insomnia_mixes_wake_and_sleep",),
    ),
    # sampling and layout
    Mutant(
        "shared latents differ between inner particles",
        "objectives/particles/sampling",
        "value = inner[:1].expand_as(inner).reshape(value.shape)",
        "value = inner.reshape(value.shape)",
        law("IW-auto-shared-and-local"),
    ),
    Mutant(
        "a recalled draw is passed on as a new tensor",
        "objectives/particles/sampling",
        "fresh = how.refreshed - shared if inner else how.refreshed",
        "fresh = how.refreshed",
        ("tests/objectives/laws/test_nested.py::test_gradient_vanishes_at_the_exact_posterior",),
    ),
    Mutant(
        "every particle draws a minibatch of its own",
        "objectives/particles/sampling",
        "subsamples |= {n: v for n, v in values.items() if n not in shared}",
        "pass",
        ("tests/objectives/test_sampling.py",),
    ),
    Mutant(
        "the weight of the KL terms is ignored",
        "objectives/particles/sampling",
        'msg["scale"] = self.scale * msg["scale"]',
        "pass",
        ("tests/objectives/test_covering.py::TestAnnealing",),
    ),
    Mutant(
        "a latent that is read outside its plate is local",
        "objectives/particles/layout",
        "if not cells[name] <= around:",
        "if False:",
        ("tests/objectives/test_layout.py",),
    ),
    # routes, sums, points, paths
    Mutant(
        "an exact KL without the entropy",
        "objectives/analytic_kl",
        "return -(kl_divergence(q, p) + q.entropy())",
        "return -kl_divergence(q, p)",
        law("analytic KL-only-shared-and-local"),
    ),
    Mutant(
        "an exact KL where a parent depends on its child",
        "objectives/analytic_kl",
        "if latent.name in structure.latents[parent].upstream:",
        "if False:",
        ("tests/objectives/test_analytic_kl.py::test_parent_drawn_after_its_child_is_no_exact_kl",),
    ),
    Mutant(
        "the mask is forgotten in sums over discrete sites",
        "programs/enumeration",
        'density = scale_and_mask(density, 1.0, site["mask"])',
        "pass",
        (f"{ENUMERATION}::test_scale_and_mask_equal_trace_enum",),
    ),
    Mutant(
        "points are not scrambled",
        "objectives/particles/sobol",
        "scrambled = shifts.expand(num_points, -1, -1)",
        "scrambled = torch.zeros(num_points, num_nets, num_dims, dtype=torch.long)",
        (f"{SOBOL}::test_each_point_is_uniform",),
    ),
    Mutant(
        "all nets share one scramble",
        "objectives/particles/sobol",
        "shifts.expand(num_points, -1, -1)",
        "shifts[:1].expand(num_points, num_nets, -1)",
        (f"{SOBOL}::test_nets_are_independent",),
    ),
    Mutant(
        "doubly reparameterized particles are points of one net",
        "objectives/particles/sobol",
        'if choices[name].estimator in ("doubly_reparameterized", "doubly_reparameterized_wake")',
        "if False",
        (f"{SOBOL}::test_importance_weighted_bound_of_independent_inner_particles",),
    ),
    Mutant(
        "a path's Jacobian is taken at its start",
        "objectives/annealed",
        'if factor.key.side == "guide" and factor.key.name in particles.draws:',
        'if factor.key.side == "guide":',
        (
            "tests/objectives/test_annealed.py::test_weights_of_paths_in_unconstrained_space_are_unbiased",
        ),
    ),
    Mutant(
        "kinetic energy has the wrong sign",
        "objectives/annealed",
        "weight = weight + _kinetic(v, num) - _kinetic(kicked, num)",
        "weight = weight - _kinetic(v, num) + _kinetic(kicked, num)",
        ("tests/objectives/test_annealed.py::test_weights_of_paths_are_unbiased",),
    ),
    # captures
    Mutant(
        "captures are not compared with eager runs",
        "compilation/captured",
        "    _compare(evaluation, activity, eager, first)\n",
        "",
        graph("seed set inside"),
    ),
    Mutant(
        "captures are compared at one point",
        "compilation/captured",
        "_PERTURBATION = 0.05",
        "_PERTURBATION = 0.0",
        graph("parameter read through numpy memory"),
    ),
    Mutant(
        "graphs are never compared again",
        "compilation/compiled_objective",
        "if graph.calls > 1 and _is_due(graph.calls):",
        "if False:",
        ("tests/compilation/test_compiled.py::test_what_changes_out_of_sight_is_found_later",),
    ),
    Mutant(
        "an argument that the model holds too is followed",
        "compilation/capture/graph",
        "(*[x.detach() for x in data])",
        "(*data)",
        graph("argument that the model holds too"),
    ),
    Mutant(
        "one tensor under two names is one",
        "compilation/capture/graph",
        "(*[x.detach() for x in data])",
        "(*data)",
        graph("one tensor twice"),
    ),
    Mutant(
        "a parameter of two names gets its gradient twice",
        "compilation/captured",
        "unique = {id(leaf): (name, leaf) for name, leaf in leaves.items()}",
        "unique = {name: (name, leaf) for name, leaf in leaves.items()}",
        graph("auto iaf normal"),
    ),
    Mutant(
        "statistics of layers are not put back",
        "compilation/capture/writes",
        "            _give(x, before)\n",
        "            pass\n",
        graph("batch norm in training"),
    ),
    Mutant(
        "shapes may depend on values",
        "compilation/capture/guard",
        "if any(map(self.varies, deciding)):",
        "if False:",
        graph("mean of a selection"),
    ),
    Mutant(
        "masks that the program holds never change",
        "compilation/capture/reads",
        "if not _same(one, other):",
        "if False:",
        graph("selection by what is held"),
    ),
    Mutant(
        "values may be read through numpy",
        "compilation/capture/guard",
        "if self.guard.varies(args[0]):",
        "if False:",
        graph("numpy of a latent"),
    ),
    Mutant(
        "other sources of noise are not noticed",
        "compilation/captured",
        "if now != before[source]:",
        "if False:",
        graph("rare noise of python"),
    ),
    Mutant(
        "Python numbers are those of the capture",
        "compilation/compiled_objective",
        "        _mode(),\n        around,\n    )",
        "        _mode(),\n        len(around),\n    )",
        graph("closure number replaced"),
    ),
    Mutant(
        "parameters stay where they were",
        "compilation/compiled_objective",
        "return self.is_of(leaves) and self.condition == _condition(self.evaluation)",
        "return self.is_of(leaves)",
        graph("parameter memory replaced"),
    ),
    Mutant(
        "hooks are forgotten",
        "compilation/leaves",
        "_by_hooks(x, g) if hooked(x) else g",
        "g",
        graph("hook on a gradient"),
    ),
    Mutant(
        "a first call is undone",
        "compilation/capture/writes",
        "        first.undo(storage, count)\n",
        "        first.undo(storage, len(first.of(storage)))\n",
        graph("average that the first call starts"),
    ),
    Mutant(
        "drawn indices are not negative",
        "compilation/capture/rewrites",
        "return torch.where(index < 0, index + tensor.shape[dim], index)",
        "return index.abs()",
        graph("element at drawn indices among others"),
    ),
    Mutant(
        "writes to a copy are lost",
        "compilation/capture/rewrites",
        "if found._version != version:",
        "if False:",
        graph("element written through a view"),
    ),
    Mutant(
        "numbers may depend on what was drawn",
        "compilation/capture/guard",
        "if any(map(self.varies, read)):",
        "if False:",
        graph("branch on a latent"),
    ),
    Mutant(
        "handlers around the call are forgotten",
        "compilation/captured",
        "            return kind.__name__\n",
        "            continue\n",
        graph("scaled from outside"),
    ),
    Mutant(
        "memory of numpy's is only written to by PyTorch",
        "compilation/compiled_objective",
        "        and x.untyped_storage().resizable()\n",
        "",
        graph("memory shared with numpy"),
    ),
    Mutant(
        "the weight of the KL terms stands still",
        "compilation/compiled_objective",
        "            self.objective.num_gradients += 1\n",
        "            pass\n",
        graph("annealed kl terms"),
    ),
    Mutant(
        "gradients of others are forgotten",
        "compilation/captured",
        "if any(x.requires_grad for x in graph.constants):",
        "if False:",
        graph("weights outside of the store"),
    ),
    Mutant(
        "random numbers are drawn in the wrong order",
        "compilation/capture/noise",
        "for draw, tensor in zip(self.draws, tensors, strict=True):",
        "for draw, tensor in reversed(list(zip(self.draws, tensors, strict=True))):",
        graph("cauchy laplace and gumbel"),
    ),
    Mutant(
        "tensors handed to C are never freed",
        "compilation/native/operators",
        "        free(ctypes.c_void_p(address))",
        "        pass",
        ("tests/compilation/test_operators.py::test_tensors_of_a_call_are_freed_with_it",),
    ),
    Mutant(
        "the source of generated code stays for ever",
        "compilation/native/leftovers",
        "kept.pop(key, None)",
        "pass",
        ("tests/compilation/test_leftovers.py::test_a_second_fit_leaves_nothing_more",),
    ),
    Mutant(
        "the classes of captured graphs stay for ever",
        "compilation/native/leftovers",
        "        _new_keys_dropped(_classes()),\n",
        "",
        ("tests/compilation/test_leftovers.py::test_a_second_fit_leaves_nothing_more",),
    ),
    Mutant(
        "a guide does not go on from what the param store has read",
        "programs/state",
        "            mine.copy_(entry)",
        "            pass",
        ("tests/inference/test_resuming.py::test_a_guide_goes_on_from_a_file_of_the_param_store",),
    ),
    Mutant(
        "particles that run at once are not looked at",
        "objectives/particles/probe",
        "        if self._crowd is None:\n            return False\n",
        "        return True\n",
        ("tests/objectives/test_sampling.py::test_programs_that_mix_particles_are_found_out",),
    ),
    Mutant(
        "generated modules pile up",
        "compilation/native/leftovers",
        "modules[:] = {module.__file__: module for module in modules}.values()",
        "pass",
        ("tests/compilation/test_leftovers.py::test_a_second_fit_leaves_nothing_more",),
    ),
    Mutant(
        "a recalled draw forgets where it comes from",
        "programs/structure/recall",
        'if msg["is_observed"] or msg["done"]:',
        'if msg["is_observed"]:',
        (f"{VARYING}::test_a_branch_on_a_differentiable_latent_takes_the_score",),
    ),
    Mutant(
        "a branch on a differentiable latent is not scored",
        "objectives/evaluation",
        "plans.branching |= suspects",
        "pass",
        (f"{VARYING}::test_a_branch_on_a_differentiable_latent_takes_the_score",),
    ),
    Mutant(
        "a particle's own cost is in its baseline where sites differ",
        "objectives/gradients/mixture",
        "if i != own and name in cost",
        "if name in cost",
        (f"{VARYING}::test_gradients_of_branches[3-StandardELBO]",),
    ),
    Mutant(
        "baselines of weighted particles tell whether their sites agree",
        "objectives/gradients/mixture",
        "if mixture.parts[0].cells:",
        "if True:",
        (f"{VARYING}::test_score_gradients_of_weighted_particles[2-importance]",),
    ),
    Mutant(
        "a guide's values all weigh the same",
        "objectives/expectations",
        "weight = aligned(log_weight, dims).exp()",
        "weight = 0 * aligned(log_weight, dims) + 0.5",
        (
            "tests/objectives/laws/test_guide_enumeration.py::test_all_values_are_the_sum_by_hand[parallel]",
        ),
    ),
    Mutant(
        "what is drawn for every value of an enumerated site has no score",
        "objectives/expectations",
        "named(total - total.detach(), rest)",
        "named(0 * total.detach(), rest)",
        (
            "tests/objectives/laws/test_guide_enumeration.py::test_scores_beside_enumeration_are_unbiased"
            "[all rows-vectorized-parallel]",
        ),
    ),
    Mutant(
        "branches that a term does not depend on are counted many times",
        "objectives/expectations",
        "share /= num_values(site)",
        "pass",
        (
            "tests/objectives/laws/test_guide_enumeration.py::test_value_and_pathwise_gradient_are_those_of_"
            "pyro[nested plates, sequential-False]",
        ),
    ),
    Mutant(
        "every branch draws anew what was drawn before it parted",
        "programs/branches",
        "elif name in self.shared and",
        "elif False and",
        (
            "tests/objectives/laws/test_guide_enumeration.py::test_value_and_pathwise_gradient_are_those_of_"
            "pyro[cells, sequential-False]",
        ),
    ),
    Mutant(
        "counters may count runs",
        "compilation/watch/footprints",
        "    if changed:\n",
        "    if False:\n",
        graph("slow counter in the closure"),
    ),
    Mutant(
        "averages that cannot be: a sum of the model may take in all of a guide's plate",
        "programs/structure/reach",
        "                check_average(key, site, other.name, read)",
        "                pass",
        (f"{GUIDES}::test_a_sum_of_the_model_across_the_guides_plate_is_unbiased[sequential]",),
    ),
    Mutant(
        "averages that cannot be: plans that enumerate stay when their sites are drawn",
        "objectives/plans",
        "            self._kept.clear()",
        "            pass",
        (f"{GUIDES}::test_a_reader_outside_of_the_plate_that_comes_later",),
    ),
    Mutant(
        "averages that cannot be: branches that were enumerated stay when later ones are drawn",
        "objectives/evaluation",
        "if plans.drawn != drawn:",
        "if False:",
        (f"{GUIDES}::test_a_reader_outside_of_the_plate_in_one_branch",),
    ),
    Mutant(
        "averages that cannot be: readers are not known where a program insists on shapes",
        "programs/structure/analysis",
        "    if averaged and model and again:",
        "    if False:",
        (
            "tests/objectives/test_guide_enumeration.py::test_programs_that_insist_on_the_shapes_of_all_values",
        ),
    ),
    Mutant(
        "branches of a guide are taken for particles",
        "objectives/evaluation",
        "if len(self.parts) == 1 or self.share is not None:",
        "if len(self.parts) == 1:",
        (
            "tests/objectives/laws/test_guide_enumeration.py::test_all_values_are_the_sum_by_hand[sequential]",
            "tests/objectives/laws/test_guide_enumeration.py",
        ),
    ),
    Mutant(
        "rows that a model names are forgotten",
        "programs/rows",
        'msg["infer"][_NAMED] = True',
        "pass",
        ("tests/programs/test_rows.py::test_a_fit_finds_the_mean_of_every_row[False]",),
    ),
]
