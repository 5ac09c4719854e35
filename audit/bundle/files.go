package bundle

import _ "embed"

//go:embed VERIFY.txt
var text string

//go:embed verify.sh
var script string
