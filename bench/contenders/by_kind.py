"""Who takes part in each kind of case: (case, whether torch.compile may take minutes) → contenders, reference first."""

from collections.abc import Callable, Iterable

from fastdiff.bench.case import Case, Kind
from fastdiff.bench.contender import Contender
from fastdiff.bench.contenders import (
    against_eager,
    cold_starts,
    denoise_steps,
    evaluations,
    exported_loops,
    exports,
    operators,
    profiles,
    samplings,
    threads,
    trainings,
)

CONTENDERS: dict[Kind, Callable[[Case, bool], Iterable[Contender]]] = {
    Kind.STEP: denoise_steps.contenders,
    Kind.EVALUATION: evaluations.contenders,
    Kind.SAMPLING: samplings.contenders,
    Kind.TRAINING: trainings.contenders,
    Kind.EXPORT: exports.contenders,
    Kind.COLD: cold_starts.contenders,
    Kind.OPERATOR: operators.contenders,
    Kind.PROFILE: profiles.contenders,
    Kind.LOOP: exported_loops.contenders,
    Kind.EAGER: against_eager.contenders,
    Kind.THREADS: threads.contenders,
}
