#!/bin/sh
# Checks the bundle that this file lies in, with openssl, coreutils, sed, awk and jq,
# and with nothing of those who made it.
#
#   sh verify.sh AUDIT.PEM [FOLDER OF THE BUNDLE BEFORE]
#
# AUDIT.PEM is the certificate of the audit key, and comes from elsewhere than this
# bundle. Exit status: 0 good, 1 bad, 2 misused, 3 nothing is wrong but something is
# missing. It takes about 20 s and twice the size of the records in $TMPDIR for 100,000
# records, and more than that in proportion where there is no /dev/shm. What
# it relies on is said in VERIFY.txt.
set -u
LC_ALL=C
export LC_ALL
chunk=8000 # files at a time, each of one record or one pair of hashes
missing=

say() { printf '%s\n' "$*"; }
bad() { say "BAD: $*"; exit 1; }
misused() { say "$*" >&2; exit 2; }
lacks() { missing=1; say "missing: $*"; }

for tool in openssl sha256sum sed awk jq split basenc base64 od paste cmp sort; do
	command -v "$tool" >/dev/null || misused "verify.sh needs $tool (basenc is in coreutils from 8.31 on)"
done
[ $# -le 2 ] || misused "usage: sh verify.sh AUDIT.PEM [FOLDER OF THE BUNDLE BEFORE]"
trust=${1:-} before=${2:-}
case $trust in ''|/*) ;; *) trust=$PWD/$trust ;; esac
case $before in ''|/*) ;; *) before=$PWD/$before ;; esac
[ -z "$trust" ] || [ -r "$trust" ] || misused "$trust cannot be read"
[ -z "$before" ] || [ -r "$before/MANIFEST" ] || misused "$before is not the folder of a bundle"
cd "$(dirname "$0")" || exit 2
work=$(mktemp -d) || exit 2
# Many small files: in memory, where that is possible.
many=$(mktemp -d -p /dev/shm 2>/dev/null) || many=$work/many
mkdir -p "$many/h" || exit 2
trap 'rm -rf "$work" "$many"' EXIT
trap 'exit 2' INT TERM

# hashes: the SHA-256 of each file in $many/h, in the order of their names, to the
# standard output; the files are removed.
hashes() {
	(cd "$many/h" && find . -type f | sort | xargs -r sha256sum | cut -c1-64) || return 1
	rm -rf "$many/h" && mkdir "$many/h"
}
# lines PREFIX FILE: the SHA-256 of each line of a file with its LF, and with PREFIX.
lines() {
	rm -rf "$work/c" && mkdir "$work/c" && split -a 6 -l "$chunk" "$2" "$work/c/" || return 1
	for c in "$work"/c/*; do
		[ -e "$c" ] || continue
		if [ -n "$1" ]; then sed "s/^/$1/" "$c"; else cat "$c"; fi | split -a 6 -l 1 - "$many/h/" || return 1
		hashes || return 1
	done
}
# nodes FILE: the SHA-256 of 01, left and right, for each two lines of hex.
nodes() {
	rm -rf "$work/c" && mkdir "$work/c" && paste -d '\0' - - <"$1" | sed 's/^/01/' | tr a-f A-F | split -a 6 -l "$chunk" - "$work/c/" || return 1
	for c in "$work"/c/*; do
		[ -e "$c" ] || continue
		basenc --base16 -d "$c" | split -a 6 -b 65 - "$many/h/" || return 1
		hashes || return 1
	done
}
node() { printf '01%s%s' "$1" "$2" | tr a-f A-F | basenc --base16 -d | sha256sum | cut -c1-64; }
# value NAME FILE: a text of a JSON object; number NAME FILE: a number that a shell can count with.
value() { jq -er ".$1" "$2" 2>/dev/null; }
number() { jq -er ".$1 | numbers | floor | if . >= 0 and . < 9007199254740992 then . else empty end" "$2" 2>/dev/null; }

# 1. The signature, before anything else is believed.
[ -r MANIFEST ] && [ -r MANIFEST.p7s ] || bad "MANIFEST or MANIFEST.p7s is not there: nobody signed this bundle"
if [ -z "$trust" ]; then
	trust=audit.pem
	lacks "a certificate from elsewhere; with the one in the bundle a forger's own signature verifies too. Its SHA-256 is $(openssl x509 -in audit.pem -outform DER 2>/dev/null | sha256sum | cut -c1-64)"
fi
if ! openssl cms -verify -cades -binary -inform DER -in MANIFEST.p7s -content MANIFEST -CAfile "$trust" -partial_chain -no_check_time -out /dev/null 2>"$work/openssl"; then
	sed 's/^/  /' "$work/openssl"
	bad "MANIFEST.p7s: it is not a signature of $trust on MANIFEST"
fi
say "ok: MANIFEST is signed by $(openssl x509 -in "$trust" -noout -subject)"

# 2. Every file, and no other.
sha256sum --strict --quiet -c MANIFEST >"$work/sums" 2>/dev/null || bad "not as MANIFEST says: $(tr '\n' ' ' <"$work/sums")"
find . ! -type d | sed 's/^\.\///' | grep -v -x -e MANIFEST -e MANIFEST.p7s | sort >"$work/there"
sed 's/^[0-9a-f]*  //' MANIFEST | sort >"$work/listed"
cmp -s "$work/there" "$work/listed" || bad "files that MANIFEST does not list: $(comm -23 "$work/there" "$work/listed" | tr '\n' ' ')"
[ "$(find . -type l | wc -l)" -eq 0 ] || bad "there are links"
say "ok: $(wc -l <MANIFEST) files are as MANIFEST says"

# 3. The signed checkpoint.
note=$(sed -n 's/^[0-9a-f]*  \(checkpoints\/[0-9]*\.note\)$/\1/p' MANIFEST)
[ -n "$note" ] && [ -f "$note" ] || bad "MANIFEST does not name one checkpoint"
sed -n 1,3p "$note" >"$work/text"
origin=$(sed -n 1p "$note") size=$(sed -n 2p "$note")
root=$(sed -n 3p "$note" | base64 -d 2>/dev/null | od -An -v -tx1 | tr -d ' \n')
openssl x509 -in "$trust" -noout -pubkey >"$work/key" 2>/dev/null || misused "$trust is no certificate"
signed=
for one in $(awk -v want="$origin" 'NR > 4 && $2 == want { print $3 }' "$note"); do
	printf %s "$one" | base64 -d 2>/dev/null | tail -c +5 >"$work/sig" # without the key's number
	if openssl dgst -sha256 -verify "$work/key" -signature "$work/sig" "$work/text" >/dev/null 2>&1; then signed=1; fi
done
[ -n "$signed" ] || bad "$note: its signature does not verify with $trust"
from=$(number from bundle.json) || bad "bundle.json does not say from where on"
if [ "$(value size bundle.json)" != "$size" ] || [ "$(value root bundle.json)" != "$root" ] || [ "$(value origin bundle.json)" != "$origin" ]; then
	bad "bundle.json: it is of another log, size or root than the signed checkpoint"
fi
say "ok: the checkpoint of $size records of $origin is signed"

# 4. The chain: each record names the SHA-256 of the one before.
: >"$work/all"
for s in segments/*.jsonl; do
	[ -z "$(tail -c 1 "$s" | tr -d '\n')" ] || bad "$s: the last line does not end in LF"
	first=$(head -n 1 "$s" | jq -r .seq 2>/dev/null)
	[ "segments/$(printf %012d "${first:-0}").jsonl" = "$s" ] || bad "$s: it begins with record ${first:-?}: a segment is missing, or has another's name"
	cat "$s" >>"$work/all"
done
lines '' "$work/all" >"$work/lines" || bad "the records cannot be hashed"
jq -r '[.seq, .prev] | @tsv' "$work/all" >"$work/names" 2>"$work/jq"
whole=$(wc -l <"$work/names")
# As is written in RFC 8785, the fields are in one order: seq and prev are of the record itself.
paste "$work/names" "$work/lines" | awk -F '\t' -v from="$from" -v prev="$(value prev bundle.json)" -v whole="$whole" '
	NR > whole { print "record " from + NR - 1 " is no JSON"; exit 1 }
	NF != 3 || $1 + 0 != from + NR - 1 { print "record " from + NR - 1 ": a record with the number " $1 " stands there: one was removed, added or moved"; exit 1 }
	$2 != prev && NR > 1 { print "record " from + NR - 2 " was changed or exchanged: the next one names another SHA-256"; exit 1 }
	$2 != prev { print "record " from " names another record before it than bundle.json"; exit 1 }
	{ prev = $3 }
' >"$work/chain" || bad "$(cat "$work/chain")$(sed 's/^/ (/; s/$/)/' "$work/jq")"
count=$(wc -l <"$work/lines")
[ "$((from + count))" -ge "$size" ] || bad "the log was cut: the signed checkpoint names $size records, and they end with record $((from + count - 1))"
[ "$((from + count))" -eq "$size" ] || bad "record $size: the signed checkpoint names no more than $size records, and there are $((from + count))"
before_name=
for s in segments/*.jsonl; do
	name=$(head -n 1 "$s" | jq -r 'select(.ev == "log.segment") | .ob.previous')
	if [ -n "$before_name" ] && [ "segments/$name" = "$before_name" ]; then
		[ "$(head -n 1 "$s" | jq -r .ob.previous_sha256)" = "$(sha256sum <"$before_name" | cut -c1-64)" ] || bad "$before_name: the next segment names another SHA-256"
	fi
	before_name=$s
done
say "ok: records $from to $((size - 1)) are a chain"

# 5. The tree: from the roots before the first record, and the records, to the signed root.
fold() { # the tree's root from what was left over on each level, lowest first
	right=
	while read -r left; do
		if [ -n "$right" ]; then right=$(node "$left" "$right"); else right=$left; fi
	done <"$1"
	say "$right"
}
lines '\x00' "$work/all" >"$work/level" || bad "the records cannot be hashed"
jq -r '.frontier[]' bundle.json >"$work/frontier"
: >"$work/edge"
n=$from known=$(wc -l <"$work/frontier")
while [ "$n" -gt 0 ] || [ -s "$work/level" ]; do
	if [ "$((n % 2))" -eq 1 ]; then # the left one of the first is before the first record: the smallest that is left
		[ "$known" -gt 0 ] || bad "bundle.json: its frontier is not of $from records"
		sed -n "${known}p" "$work/frontier" | cat - "$work/level" >"$work/next" && mv "$work/next" "$work/level"
		known=$((known - 1))
	fi
	if [ "$(($(wc -l <"$work/level") % 2))" -eq 1 ]; then
		tail -n 1 "$work/level" >>"$work/edge"
		sed '$d' "$work/level" >"$work/next" && mv "$work/next" "$work/level"
	fi
	nodes "$work/level" >"$work/up" || bad "the tree cannot be hashed"
	mv "$work/up" "$work/level"
	n=$((n / 2))
done
[ "$known" -eq 0 ] || bad "bundle.json: its frontier is not of $from records"
[ "$(fold "$work/edge")" = "$root" ] || bad "record $((size - 1)), or the records before the first one: the root of the tree is not the one in the signed checkpoint"
say "ok: the root of the tree is the one in the signed checkpoint"

# 6. The certificates that the records name as issued.
grep -F '"out":"issued"' "$work/all" | jq -r '
	def fold: if length > 64 then .[:64], (.[64:] | fold) else . end;
	select(.out == "issued") | .ob.certificate // "" | select(. != "") | "-----BEGIN CERTIFICATE-----", fold, "-----END CERTIFICATE-----"' >"$work/issued" || bad "the certificates in the records cannot be read"
cmp -s "$work/issued" certificates/issued.pem || bad "certificates/issued.pem: it does not have exactly the certificates that the records name as issued"
say "ok: certificates/issued.pem has the $(grep -c BEGIN "$work/issued") certificates that the records name as issued"

# 7. What comes before.
if [ -r consistency.json ]; then
	c=$(number size consistency.json) && r=$(value root consistency.json) && [ "$c" -gt 0 ] || bad "consistency.json has no size and root"
	# RFC 9162, section 2.1.4.2
	jq -r '.proof[]' consistency.json >"$work/proof"
	fn=$((c - 1)) sn=$((size - 1))
	while [ "$((fn % 2))" -eq 1 ]; do fn=$((fn / 2)) sn=$((sn / 2)); done
	fr= sr=
	if [ "$fn" -eq 0 ]; then fr=$r sr=$r; fi # a whole tree
	if [ "$c" -eq "$size" ]; then fr=$r sr=$r sn=0; fi # the same records: the proof is empty
	while read -r p; do
		if [ -z "$fr" ]; then fr=$p sr=$p; continue; fi
		[ "$sn" -gt 0 ] || bad "consistency.json: the proof is too long"
		if [ "$((fn % 2))" -eq 1 ] || [ "$fn" -eq "$sn" ]; then
			fr=$(node "$p" "$fr") sr=$(node "$p" "$sr")
			while [ "$((fn % 2))" -eq 0 ] && [ "$fn" -ne 0 ]; do fn=$((fn / 2)) sn=$((sn / 2)); done
		else
			sr=$(node "$sr" "$p")
		fi
		fn=$((fn / 2)) sn=$((sn / 2))
	done <"$work/proof"
	if [ "$fr" != "$r" ] || [ "$sr" != "$root" ] || [ "$sn" -ne 0 ]; then bad "consistency.json: the log does not go on from the $c records of the bundle before"; fi
	say "ok: the log goes on from the $c records of an earlier bundle"
fi
if [ -n "$before" ]; then
	b=$(number size "$before/bundle.json") && br=$(value root "$before/bundle.json") || bad "$before/bundle.json has no size and root"
	[ "$b" -le "$size" ] || bad "it ends with $size records, and $before with $b: an old log was put back, or they are in the wrong order"
	if [ -r consistency.json ] && [ "$(value size consistency.json)" = "$b" ]; then
		[ "$(value root consistency.json)" = "$br" ] || bad "two histories: the first $b records are not those of $before"
	elif [ "$b" -ne "$from" ]; then
		lacks "a proof that this log goes on from $before: export with --previous"
	fi
	if [ "$b" -eq "$from" ] && [ "$(value prev bundle.json)" != "$(cat "$before"/segments/*.jsonl | tail -n 1 | sha256sum | cut -c1-64)" ]; then
		bad "two histories: record $from does not follow the last one of $before"
	fi
	[ "$b" -ge "$from" ] || lacks "records $b to $((from - 1)): they are neither here nor in $before"
fi
transcript=$(head -n 1 "$work/all" | jq -r 'select(.seq == 0) | .ob.transcript_sha256 // ""')
if [ -n "$transcript" ] && ! grep -q "^$transcript  ceremony/" MANIFEST; then lacks "the transcript of the ceremony that the first record names"; fi

if [ -n "$missing" ]; then
	say "INCOMPLETE: nothing is wrong, but something is missing, as said above"
	exit 3
fi
say "GOOD: records $from to $((size - 1)) of $origin"
exit 0
