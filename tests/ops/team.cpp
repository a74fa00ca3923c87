// Stands in for libgomp where the thread sanitizer looks on: the same teams and barriers, by means that it understands.

#include <pthread.h>

#include <vector>

namespace {

struct Team {
    pthread_barrier_t barrier;
    void (*work)(void *);
    void *data;
    int size;
};

struct Member {
    Team *team;
    int rank;
};

thread_local Member current{nullptr, 0};

void *run(void *given) {
    current = *static_cast<Member *>(given);
    current.team->work(current.team->data);
    current = {nullptr, 0};
    return nullptr;
}

}  // namespace

extern "C" {

int omp_get_thread_num() { return current.rank; }
int omp_get_num_threads() { return current.team ? current.team->size : 1; }

void GOMP_barrier() {
    if (current.team) pthread_barrier_wait(&current.team->barrier);
}

void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned) {
    Team team{{}, work, data, threads ? static_cast<int>(threads) : 1};
    pthread_barrier_init(&team.barrier, nullptr, team.size);
    std::vector<Member> members;
    for (int rank = 0; rank < team.size; rank++) members.push_back({&team, rank});
    std::vector<pthread_t> others(team.size - 1);
    for (int rank = 1; rank < team.size; rank++) pthread_create(&others[rank - 1], nullptr, run, &members[rank]);
    run(&members[0]);
    for (pthread_t other : others) pthread_join(other, nullptr);
    pthread_barrier_destroy(&team.barrier);
}
}
