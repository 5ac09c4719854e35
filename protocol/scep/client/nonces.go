package client

import (
	"bytes"
	"slices"
	"sync"
)

// maxNonces bounds what is remembered; then the oldest is forgotten.
const maxNonces = 4096

// Nonces remember the senderNonces of replies that were verified, so that none is
// taken twice. The zero value remembers none. It is safe for concurrent use.
type Nonces struct {
	mu   sync.Mutex
	list [][]byte // in the order that they came
	set  map[string]struct{}
}

// Add remembers nonce, and reports whether it was new.
func (n *Nonces) Add(nonce []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, old := n.set[string(nonce)]; old {
		return false
	}
	if n.set == nil {
		n.set = map[string]struct{}{}
	}
	if len(n.list) == maxNonces {
		delete(n.set, string(n.list[0]))
		n.list = slices.Delete(n.list, 0, 1)
	}
	n.list = append(n.list, bytes.Clone(nonce))
	n.set[string(nonce)] = struct{}{}
	return true
}

// All returns those that are remembered, the oldest first, to be kept for the next
// time.
func (n *Nonces) All() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}
