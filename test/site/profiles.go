package site

// Profiles are those of the demonstration: `demo`, and `interop` for clients
// that renew with the same key.
const Profiles = `profiles:
  - name: demo
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: same-subject}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
      O:  {value: Example Corp}
    san:
      dns: {pattern: '[a-z0-9-]+\.demo\.example', max: 1, must_equal: CN}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 1, max_age: 2y, new_key: required, old: keep}
    limits: {active_per_subject: 2}
    clients: {digests: [SHA-256, SHA-512], ciphers: [AES-128-CBC, AES-256-CBC]}
  - name: interop
    protocols: [scep]
    issuer: demo
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}, reuse: same-subject}
    subject:
      CN: {pattern: '[a-z0-9-]{1,40}\.demo\.example', required: true}
      O:  {value: Example Corp}
    san:
      dns: {pattern: '[a-z0-9-]+\.demo\.example', max: 1, must_equal: CN}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d, backdate: 1h}
    renewal: {window: 100%, max_count: 5, max_age: 6y, new_key: optional, old: keep}
    limits: {active_per_subject: 10}
    clients: {digests: [SHA-256, SHA-512], ciphers: [AES-128-CBC, AES-256-CBC]}
`
