"""Exercise 7: prune and distil.

- The mask: exactly round(sparsity * n) zeros, whatever the ties, and no pruned weight is larger than one that stays.
- The loss is linear in alpha, so its two ends are judged separately: at alpha=0 it is the cross-entropy with the
  labels, at alpha=1 T² KL(teacher || student), both softened by T. A wrong value is compared with those of known
  mistakes.
- The student: its weights come back as plain tensors, and the judge runs the network itself, on images that never enter
  the process of the answer. So a student can neither call its teacher nor hide parameters.

60 % of the labels that come with the images are drawn at random. Over many variants of right answers (sizes, learning
rates, temperatures, masks from the start or late) distilled and pruned students reach an accuracy of 92 to 98 % on a
draw; trained on those labels alone, 60 to 87 %. `MIN_ACCURACY` is for the mean of two draws.
"""

from labsupport.checks.check import Exercise
from labsupport.checks.ex07_prune_and_distill.loss import check_loss
from labsupport.checks.ex07_prune_and_distill.loss_gradient import check_loss_gradient
from labsupport.checks.ex07_prune_and_distill.loss_sequences import check_loss_sequences
from labsupport.checks.ex07_prune_and_distill.mask_count import check_mask_count
from labsupport.checks.ex07_prune_and_distill.mask_smallest import check_mask_smallest
from labsupport.checks.ex07_prune_and_distill.student_accuracy import check_student_accuracy
from labsupport.checks.ex07_prune_and_distill.student_size import check_student_size

__all__ = [
    "EXERCISE",
    "check_loss",
    "check_loss_gradient",
    "check_loss_sequences",
    "check_mask_count",
    "check_mask_smallest",
    "check_student_accuracy",
    "check_student_size",
]

EXERCISE = Exercise(
    name="ex07_prune_and_distill",
    checks=(
        check_mask_count,
        check_mask_smallest,
        check_loss,
        check_loss_sequences,
        check_loss_gradient,
        check_student_size,
        check_student_accuracy,
    ),
)
