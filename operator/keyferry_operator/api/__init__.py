"""The broker API: what sidecars and the approval page ask of the operator, over HTTPS, answered by every replica.

Rights that it needs beside those of the operator itself (``tests/chart/rights.py`` has them call by call):

- in its own namespace: get, create, update Secrets (its certificate; the operator has these anyway);
- in watched namespaces: get Pods and ServiceAccounts (whose tokens are presented); get, create, patch ConfigMaps
  (``keyferry-ca``, by which sidecars know the server; get it has anyway);
- in the whole cluster, where that is watched: create TokenReviews (where the cluster's keys cannot be read).

The cluster's keys are read at ``/openid/v1/jwks``, which the cluster role ``system:service-account-issuer-discovery``
opens to every service account by default. What a viewer of the approval page may list is asked with the viewer's own
token.
"""
