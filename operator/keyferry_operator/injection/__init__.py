"""The mutating webhook: one annotation on a pod, and its token files are there.

``inject`` is pure: a pod and what is known of its identities to a patch, or to the one sentence that says why not.
``answer`` wraps it into an AdmissionReview (admission.k8s.io/v1).
"""

from keyferry_operator.injection.inject import Injection, inject
from keyferry_operator.injection.pods import MalformedPod, Pod, read_pod
from keyferry_operator.injection.review import Answer, BadReview, answer
from keyferry_operator.injection.settings import InjectionSettings
from keyferry_operator.injection.wishes import Refused

__all__ = [
    "Answer",
    "BadReview",
    "Injection",
    "InjectionSettings",
    "MalformedPod",
    "Pod",
    "Refused",
    "answer",
    "inject",
    "read_pod",
]
