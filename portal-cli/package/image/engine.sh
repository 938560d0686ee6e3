# Debian's buildah and podman with a storage of their own, so that the machine's own images are not touched; sourced, not
# run. The script that sources this sets folder.
storage=(--root "$folder/storage" --runroot "$folder/run" --storage-driver overlay)
# runc puts its containers' cgroups below the caller's.
export BUILDAH_RUNTIME=runc
buildah=(buildah "${storage[@]}")
# shellcheck disable=SC2034
podman=(podman "${storage[@]}" --tmpdir "$folder/tmp" --cgroup-manager cgroupfs --events-backend none --runtime runc)
